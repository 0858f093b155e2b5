"""What is known of a request once it is answered, and of the models that answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ptexport.runtime.engine.answer import Timing

Protocol = Literal["http", "grpc"]
Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that asked for predictions. It has nothing of its content: no text, no id, no label.

    Attributes:
        model: name of the model that it was for; "" if there is no such model.
        version: version of that model; "" if there is no such model.
        protocol: how it came.
        request_id: the caller's or a new one, from `logs.request_id`.
        code: HTTP status of the response; of gRPC the one that HTTP would have.
        reason: why it failed; None: it did not. "REJECTED": the queue was full. "CANCELED": the client went away or the
            deadline passed. "BACKEND": a fault of the server. "OTHER": a fault of the request.
        texts: texts or rows of ids in it; 0 if it could not be read.
        tokens: tokens of its texts, without padding; 0 if they were not tokenised.
        timing: where the time went; None: it reached no batch.
        total_s: seconds from its route to its response. Over HTTP the whole body is there by then.
        trace: trace id, 32 hex digits; None: the caller sent none, and no traces are exported.
    """

    model: str
    version: str
    protocol: Protocol
    request_id: str
    code: int
    reason: Reason | None
    texts: int
    tokens: int
    timing: Timing | None
    total_s: float
    trace: str | None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the server, as metrics and the report at start show it.

    Attributes:
        name: name of the task.
        version: version of the model.
        provider: ONNX Runtime's name of the execution provider.
        device: number of the GPU; 0 on the CPU.
        threads: number of CPUs that the session uses.
        precision: precision of the weights, such as "fp32".
        degraded: why provider "auto" chose the CPU; None: it did not, or no GPU was found.
    """

    name: str
    version: str
    provider: str
    device: int
    threads: int
    precision: str
    degraded: str | None


@dataclass(frozen=True, slots=True)
class ServerState:
    """What a server is at this moment.

    Attributes:
        ready: whether it accepts requests for predictions.
        waiting: texts that are submitted and not answered.
        models: every model.
    """

    ready: bool
    waiting: int
    models: Sequence[ServedModel]


def timing_headers(timing: Timing | None, total_s: float) -> dict[str, str]:
    """Return the response headers that say where the time went, in milliseconds with 3 decimals.

    Args:
        timing: of the request; None: it reached no batch, so only `x-total-time` is known.
        total_s: as in RequestRecord.
    """
    total = {"x-total-time": f"{total_s * 1e3:.3f}"}
    if timing is None:
        return total
    return {
        "x-queue-time": f"{timing.queue_s * 1e3:.3f}",
        "x-tokenization-time": f"{timing.tokenise_s * 1e3:.3f}",
        "x-inference-time": f"{timing.compute_s * 1e3:.3f}",
        **total,
    }
