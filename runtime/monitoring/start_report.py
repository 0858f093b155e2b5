"""What runs where -> lines for people, and one JSON object."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ptexport.runtime.monitoring.records import ServedModel


class StartReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is when it begins to listen.

    Attributes:
        addresses: where it listens, such as "http://127.0.0.1:8000" and "grpc://127.0.0.1:8001".
        models: every model.
        watch: folder from which tasks come and go; None: none do.
        max_batch_tokens: tokens of a batch, with padding; None: what suits the device.
        max_delay_ms: milliseconds that a batch waits for more texts.
        max_queue: texts that may wait; None: any number.
        limits: limits of a request, by name: bytes, texts, characters, seconds.
        token: whether requests need a token.
        tls: whether connections are encrypted.
        traces: where traces are sent; None: nowhere.
        log_requests: whether every request is logged.
        versions: versions of packages, by name.
    """

    addresses: Sequence[str]
    models: Sequence[ServedModel]
    watch: str | None
    max_batch_tokens: int | None
    max_delay_ms: float
    max_queue: int | None
    limits: Mapping[str, float]
    token: bool
    tls: bool
    traces: str | None
    log_requests: bool
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` and the event `start` have: the attributes, as values of JSON."""
        return dict(msgspec.to_builtins(self))

    def lines(self) -> list[str]:
        """Return the lines for people."""
        size = (
            "as large as suits the device"
            if self.max_batch_tokens is None
            else f"at most {self.max_batch_tokens:,} tokens"
        )
        texts = "any number of" if self.max_queue is None else f"{self.max_queue:,}"
        facts = {
            "versions": [", ".join(f"{name} {number}" for name, number in self.versions.items())],
            "models": _model_lines(self.models) or ["none yet"],
            "watch": [self.watch] if self.watch else [],
            "batches": [f"{size}, waiting at most {self.max_delay_ms:g} ms for more"],
            "queue": [f"{texts} texts"],
            "limits": [", ".join(f"{name} {value:,}" for name, value in self.limits.items())],
            "access": [f"{'token' if self.token else 'no token'}, {'TLS' if self.tls else 'no TLS'}"],
            "traces": [self.traces] if self.traces else [],
            "logs": ["every request"] if self.log_requests else [],
            "listening": list(self.addresses),
        }
        return [
            f"{name if first else '':<10} {line}".rstrip()
            for name, lines in facts.items()
            for first, line in zip([True] + [False] * len(lines), lines, strict=False)
        ]


def _model_lines(models: Sequence[ServedModel]) -> list[str]:
    width = max((len(model.name) for model in models), default=0)
    lines = []
    for model in models:
        provider = model.provider.removesuffix("ExecutionProvider")
        on_cpu = provider == "CPU"
        place = f"{model.threads} thread{'s' * (model.threads != 1)}" if on_cpu else f"device {model.device}"
        lines.append(f"{model.name:<{width}}  {model.version}  {provider}, {place}, {model.precision}")
        if model.degraded is not None:
            lines.append(f"{'':<{width}}  on the CPU because: {model.degraded}")
    return lines
