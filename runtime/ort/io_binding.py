"""Ids -> logits through memory that is bound to a session once per shape of batch; knows devices, nothing of providers.

The same code runs on every device, so that what a GPU will run is tested on the CPU.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = dict[str, NDArray[np.int64]]
"""What the graph takes, by input name: `input_ids`, `attention_mask` and, for some, `token_type_ids`; int64 [b, s]."""

Shape = tuple[int, int]
"""Rows and tokens."""

_NOT_RECORDED = -1


class Buffers:
    """Memory on a device for one shape of batch, bound to a session's inputs and output.

    Args:
        session: an InferenceSession.
        inputs: names of the ids that the graph takes.
        arrays: what else it is given, OrtValues on the device.
        device: as ONNX Runtime names it, and its number.
        shape: of the ids.
        recorded_as: number to record what runs as a CUDA graph under, one per shape; None: it is not recorded.
    """

    def __init__(
        self,
        session: Any,
        inputs: Sequence[str],
        arrays: Mapping[str, Any],
        device: tuple[str, int],
        shape: Shape,
        recorded_as: int | None = None,
    ) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._shape = shape
        self._ids = {name: OrtValue.ortvalue_from_shape_and_type(list(shape), np.int64, *device) for name in inputs}
        self._logits: Any = None
        self._recorded_as = recorded_as
        self._bound = session.io_binding()
        for name, value in (self._ids | dict(arrays)).items():
            self._bound.bind_ortvalue_input(name, value)
        self._bound.bind_output("logits", *device)

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """Score ids of at most the shape, float32 [rows, …]; what is left of it is padding."""
        for name, value in self._ids.items():
            value.update_inplace(self._padded(ids[name]))
        if self._logits is None:  # the first run finds the output's shape; from then on it stays where it is
            self._session.run_with_iobinding(self._bound, self._options(_NOT_RECORDED))
            (self._logits,) = self._bound.get_outputs()
            self._bound.bind_ortvalue_output("logits", self._logits)
            if self._recorded_as is not None:
                self._session.run_with_iobinding(self._bound, self._options(self._recorded_as))
        else:
            self._session.run_with_iobinding(self._bound, self._options(self._recorded_as))
        logits: NDArray[np.float32] = self._logits.numpy()
        return logits[: len(ids["input_ids"])].copy()

    def _options(self, number: int | None) -> Any:
        """Say which recorded graph a run belongs to; None where none is recorded at all."""
        if self._recorded_as is None:
            return None
        from onnxruntime import RunOptions

        options = RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return options

    def _padded(self, given: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pad with tokens that are masked, and with rows like the first: one with no token would be no number."""
        if given.shape == self._shape:
            return np.ascontiguousarray(given)
        padded = np.zeros(self._shape, dtype=np.int64)
        padded[:, : given.shape[1]] = given[0]
        padded[: len(given), : given.shape[1]] = given
        return padded


class BufferPool:
    """Buffers of a session by shape, lent to one run at a time.

    Args:
        make: makes buffers of a shape, under the number that what it runs is recorded as.
        recorded: whether it is.
        kept: how many buffers are kept, those used last.
    """

    def __init__(self, make: Callable[[Shape, int | None], Buffers], *, recorded: bool, kept: int) -> None:
        self._make = make
        self._recorded = recorded
        self._kept = kept
        self._numbers: dict[Shape, int] = {}
        self._lock = threading.Lock()
        self._free: list[tuple[Shape, Buffers]] = []  # used last at the end

    def take(self, shape: Shape) -> Buffers:
        """Take buffers that nobody else has."""
        with self._lock:
            for i in reversed(range(len(self._free))):
                if self._free[i][0] == shape:
                    return self._free.pop(i)[1]
            number = self._numbers.setdefault(shape, len(self._numbers)) if self._recorded else None
        return self._make(shape, number)

    def give_back(self, shape: Shape, buffers: Buffers) -> None:
        """Keep buffers for the next run of the shape."""
        with self._lock:
            self._free.append((shape, buffers))
            del self._free[: -self._kept]
