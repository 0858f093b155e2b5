"""A configuration -> a server with its models, batcher, metrics and logs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import ServeError
from ptexport.runtime.server.auth import read_token
from ptexport.runtime.server.limits import BODY_SECONDS, MAX_BODY_BYTES
from ptexport.runtime.server.listen import Listening, listen
from ptexport.runtime.server.tls import read_tls
from ptexport.runtime.serving.logs import Logs
from ptexport.runtime.serving.metrics import Metrics
from ptexport.runtime.serving.models import Models
from ptexport.runtime.serving.observer import Observer
from ptexport.runtime.serving.questions import MAX_CHARACTERS, MAX_TEXTS
from ptexport.runtime.serving.records import ServedModel, ServerState
from ptexport.runtime.serving.service import Service
from ptexport.runtime.serving.start_report import StartReport
from ptexport.runtime.serving.tracing import open_tracer, traces_url


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What to serve, where, and within which limits.

    Attributes:
        bundles: folders of bundles.
        watch: folder whose bundles and packs are served as they come and go; None: none.
        at: where to listen; its token and certificate are read from the files below.
        max_batch_tokens: most tokens of a batch, padding included; None: what suits the device.
        max_delay_s: longest time that an idle server waits for a batch to fill up.
        max_queue: texts that may wait.
        token_file: file with the token that requests must carry; None: they need none.
        tls_files: certificate chain and key; None: no encryption.
        log_requests: whether every request is logged.
        otlp_endpoint: address of an OpenTelemetry collector; None: no traces are sent.
        opening: further arguments of `Engine.open`.
    """

    bundles: Sequence[Path]
    watch: Path | None
    at: Listening
    max_batch_tokens: int | None
    max_delay_s: float
    max_queue: int
    token_file: Path | None
    tls_files: tuple[Path, Path] | None
    log_requests: bool
    otlp_endpoint: str | None
    opening: Mapping[str, Any]


Show = Callable[[dict[str, Any], Sequence[str]], None]
"""Shows what runs where, as JSON or as lines."""


def run(config: ServeConfig, show: Show) -> None:
    """Serve until a signal comes; see `listen`.

    Args:
        config: what, where and within which limits.
        show: called once requests are accepted.

    Raises:
        BundleError: a bundle does not match its manifest.
        ProviderError: the provider does not run a graph.
        ServeError: an address, the token file or the certificate cannot be used, or bundles have tasks of one name.
        MissingExtraError: a package is not installed.
    """
    at = replace(
        config.at,
        token=None if config.token_file is None else read_token(config.token_file),
        tls=None if config.tls_files is None else read_tls(*config.tls_files),
    )
    models, logs = Models(), Logs()
    metrics = Metrics(lambda: _state(models, batcher))
    batcher = Batcher(
        max_batch_tokens=config.max_batch_tokens,
        max_delay_s=config.max_delay_s,
        max_waiting=config.max_queue,
        on_batch=metrics.batch,
    )
    tracer = None
    if config.otlp_endpoint is not None:
        tracer = open_tracer(config.otlp_endpoint, version("ptexport"), lambda: logs.write("traces-lost", "warning"))
    observer = Observer(metrics, logs, tracer, log_requests=config.log_requests)
    for path in config.bundles:
        engine = Engine.open(path, batcher=batcher, **config.opening)
        engine.warm_up()  # so that no request is the first of its batch shape
        _check_names(models, engine, path)
        models.put(str(path), engine)
        for name in engine.tasks:
            metrics.add(name, engine.manifest.digest[:12])

    def ready(addresses: Sequence[str]) -> None:
        report = _report(config, at, models, addresses)
        show(_record(models, report), report.lines())

    listen(Service(models, batcher), observer, at, on_ready=ready)
    observer.close()


def _check_names(models: Models, engine: Engine, path: Path) -> None:
    both = sorted(set(models.names()) & set(engine.tasks))
    if both:
        raise ServeError(f"{path}: has the task {both[0]}, which another bundle has too; export one under another name")


def _served(models: Models) -> list[ServedModel]:
    made = []
    for name in models.names():
        model = models.find(name)
        info = model.engine.info
        made.append(
            ServedModel(
                name=name,
                version=model.version,
                provider=info.provider,
                device=info.device,
                threads=info.threads,
                precision=model.engine.manifest.graph.precision,
                degraded=info.degraded,
            )
        )
    return made


def _state(models: Models, batcher: Batcher) -> ServerState:
    return ServerState(ready=bool(models.names()), waiting=batcher.waiting, models=_served(models))


def _record(models: Models, report: StartReport) -> dict[str, Any]:
    """Make the record of `--json`: the report, and what scripts read most."""
    return {"url": report.addresses[0], "names": models.names(), **report.as_dict()}


def _report(config: ServeConfig, at: Listening, models: Models, addresses: Sequence[str]) -> StartReport:
    return StartReport(
        addresses=addresses,
        models=_served(models),
        watch=None if config.watch is None else str(config.watch),
        max_batch_tokens=config.max_batch_tokens,
        max_delay_ms=config.max_delay_s * 1000,
        max_queue=config.max_queue,
        limits={
            "body bytes": MAX_BODY_BYTES,
            "body seconds": BODY_SECONDS,
            "texts": MAX_TEXTS,
            "characters": MAX_CHARACTERS,
        },
        token=at.token is not None,
        tls=at.tls is not None,
        traces=None if config.otlp_endpoint is None else traces_url(config.otlp_endpoint),
        log_requests=config.log_requests,
        versions=_versions(models),
    )


def _versions(models: Models) -> dict[str, str]:
    for name in models.names():
        return dict(models.find(name).engine.info.versions)
    return {"ptexport": version("ptexport")}
