"""A configuration -> a server with its models, batcher, metrics and logs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from ptexport.runtime.bundle.manifest import ALL
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import PackError, ServeError
from ptexport.runtime.guard.auth import read_token
from ptexport.runtime.guard.connections import raise_file_limit
from ptexport.runtime.guard.limits import BODY_SECONDS, MAX_BODY_BYTES
from ptexport.runtime.guard.tls import read_tls
from ptexport.runtime.monitoring.logs import Event, Level, Logs
from ptexport.runtime.monitoring.metrics import Metrics
from ptexport.runtime.monitoring.observer import Observer
from ptexport.runtime.monitoring.records import ServedModel, ServerState
from ptexport.runtime.monitoring.start_report import StartReport
from ptexport.runtime.monitoring.tracing import open_tracer, traces_url
from ptexport.runtime.server.address import Listening
from ptexport.runtime.server.listen import listen
from ptexport.runtime.server.stopping import ending_at_a_signal
from ptexport.runtime.serving.models import Model, Models, version_of
from ptexport.runtime.serving.questions import MAX_CHARACTERS
from ptexport.runtime.serving.service import Service
from ptexport.runtime.serving.tensors import MAX_TEXTS
from ptexport.runtime.serving.watch import Log, Watch, open_pack


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
    """Serve until a signal comes; see `listen`. One that comes while bundles are opened ends the process with 0.

    Args:
        config: what, where and within which limits.
        show: called once requests are accepted.

    Raises:
        BundleError: a bundle does not match its manifest.
        ProviderError: the provider does not run a graph.
        ServeError: an address, the token file or the certificate cannot be used, or bundles have tasks of one name.
        MissingExtraError: a package is not installed.
    """
    raise_file_limit()
    at = replace(
        config.at,
        token=None if config.token_file is None else read_token(config.token_file),
        tls=None if config.tls_files is None else read_tls(*config.tls_files),
    )
    if config.watch is not None and not config.watch.is_dir():
        raise ServeError(f"{config.watch}: no such folder, need one to watch; make it, or correct --watch")
    with ending_at_a_signal():
        server = _Server(config, at)
        try:
            for path in config.bundles:
                server.serve_bundle(path)
            server.run(show)
        finally:
            server.observer.close()


class _Server:
    """What one server consists of."""

    def __init__(self, config: ServeConfig, at: Listening) -> None:
        self._config = config
        self._at = at
        self._models = Models()
        self._is_ready: Callable[[], bool] = lambda: False
        self._metrics = Metrics(self._state)
        self._batcher = Batcher(
            max_batch_tokens=config.max_batch_tokens,
            max_delay_s=config.max_delay_s,
            max_waiting=config.max_queue,
            on_batch=self._metrics.batch,
        )
        logs = Logs()
        tracer = None
        if config.otlp_endpoint is not None:
            tracer = open_tracer(
                config.otlp_endpoint, version("ptexport"), lambda: logs.write("traces-lost", "warning")
            )
        self.observer = Observer(self._metrics, logs, tracer, log_requests=config.log_requests)

    def serve_bundle(self, path: Path) -> None:
        """Serve a bundle until the end."""
        engine = self._open(path)
        engine.warm_up()  # so that no request is the first of its batch shape
        both = sorted(set(self._models.names()) & set(engine.tasks))
        if both:
            raise ServeError(
                f"{path}: has the task {both[0]}, which another bundle has too; export one of them under another name"
            )
        self.put(str(path), engine)

    def _open(self, path: Path) -> Engine:
        return Engine.open(path, batcher=self._batcher, **self._config.opening)

    def put(self, source: str, engine: Engine) -> None:
        """Serve the tasks of an engine in place of what the source had, and count their requests."""
        before = self._models.snapshot()
        for name in engine.tasks:
            self._metrics.add(name, version_of(engine))
        self._metrics.add(ALL, "")
        self._models.put(source, engine)
        self._forget(before)

    def drop(self, source: str) -> None:
        """Serve the tasks of a source no longer."""
        before = self._models.snapshot()
        self._models.drop(source)
        self._forget(before)

    def snapshot(self) -> list[Model]:
        """Return every model."""
        return self._models.snapshot()

    def _forget(self, before: Sequence[Model]) -> None:
        """Drop the counts of models that are served no longer."""
        now = {(model.name, model.version) for model in self._models.snapshot()}
        for model in before:
            if (model.name, model.version) not in now:
                self._metrics.forget(model.name, model.version)

    def run(self, show: Show) -> None:
        """Serve until a signal comes."""
        service, logs = Service(self._models, self._batcher, self._metrics), self.observer.logs
        watch = None
        if self._config.watch is not None:
            signed = self._config.opening.get("require_signature") is not None
            opens = _refuse_unsigned if signed else open_pack
            watch = Watch(self._config.watch, self, open_bundle=self._open, open_pack=opens, log=_log_to(logs))
            watch.start()

        def ready(addresses: Sequence[str], is_ready: Callable[[], bool]) -> None:
            self._is_ready = is_ready
            report = self._report(addresses)
            show({"url": addresses[0], **report.as_dict()}, report.lines())

        async def stopping() -> None:
            if watch is not None:
                watch.stop()
            logs.write("stopping")

        listen(service, self.observer, self._at, on_ready=ready, on_stop=[stopping])
        logs.write("stopped", "info", **self._metrics.counts())

    def _state(self) -> ServerState:
        return ServerState(ready=self._is_ready(), waiting=self._batcher.waiting, models=_served(self._models))

    def _report(self, addresses: Sequence[str]) -> StartReport:
        config, models = self._config, self._models.snapshot()
        return StartReport(
            addresses=addresses,
            models=_served(self._models),
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
            token=self._at.token is not None,
            tls=self._at.tls is not None,
            traces=None if config.otlp_endpoint is None else traces_url(config.otlp_endpoint),
            log_requests=config.log_requests,
            versions=models[0].engine.info.versions if models else {"ptexport": version("ptexport")},
        )


def _refuse_unsigned(path: Path, _: Sequence[Engine]) -> Engine:
    raise PackError(
        f"{path}: got a pack, which has no signature, need a signed bundle, since a signature is required; install it "
        "into a bundle, and sign that"
    )


def _log_to(logs: Logs) -> Log:
    def write(event: Event, **fields: object) -> None:
        level: Level = "warning" if event in ("model-refused", "watch-failed") else "info"
        logs.write(event, level, **cast("dict[str, Any]", fields))

    return write


def _served(models: Models) -> list[ServedModel]:
    made = []
    for model in models.snapshot():
        info = model.engine.info
        made.append(
            ServedModel(
                name=model.name,
                version=model.version,
                provider=info.provider,
                device=info.device,
                threads=info.threads,
                precision=model.engine.manifest.graph.precision,
                degraded=info.degraded,
            )
        )
    return made
