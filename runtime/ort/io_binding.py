"""Ids -> logits, through memory that is bound to a session once per batch shape.

The same code runs on every device, so tests on the CPU cover what a GPU will run.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = dict[str, NDArray[np.int64]]
"""Inputs of the graph by name: `input_ids`, `attention_mask` and, for some, `token_type_ids`; int64 [rows, tokens]."""

Shape = tuple[int, int]
"""Rows and tokens."""

_NOT_RECORDED = -1


class Buffers:
    """Memory on a device for one batch shape, bound to the inputs and the output of a session.

    Args:
        session: an InferenceSession.
        inputs: names of the graph's inputs that get ids.
        arrays: OrtValues on the device for its other inputs, by name.
        device: ONNX Runtime's name of the device type, and the number of the device.
        shape: shape of the ids.
        recorded_as: number of the CUDA graph that records the run, one per shape; None: no recording.
        rebinds: whether ids are bound again in each run: ONNX Runtime copies them when they are bound, not when they
            run, if the device of a plugin is not that of the values (OpenVINO's, 1.8.1, has memory of its own).
    """

    def __init__(
        self,
        session: Any,
        inputs: Sequence[str],
        arrays: Mapping[str, Any],
        device: tuple[str, int],
        shape: Shape,
        recorded_as: int | None = None,
        *,
        rebinds: bool = False,
    ) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._shape = shape
        self._ids = {name: OrtValue.ortvalue_from_shape_and_type(list(shape), np.int64, *device) for name in inputs}
        self._logits: Any = None
        self._recorded_as = recorded_as
        self._rebinds = rebinds
        self._bound = session.io_binding()
        for name, value in (self._ids | dict(arrays)).items():
            self._bound.bind_ortvalue_input(name, value)
        self._bound.bind_output("logits", *device)

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """Compute the logits of a batch that fits into the shape, float32 [rows, …]; the rest is padding."""
        for name, value in self._ids.items():
            value.update_inplace(self._padded(ids[name]))
            if self._rebinds:
                self._bound.bind_ortvalue_input(name, value)
        if self._logits is None:  # the first run allocates the output, and later runs reuse it
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
        """Make the run options that name a CUDA graph; None: runs are not recorded."""
        if self._recorded_as is None:
            return None
        from onnxruntime import RunOptions

        options = RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return options

    def _padded(self, given: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pad rows with masked tokens, and the batch with copies of the first row: an empty row would give NaN."""
        if given.shape == self._shape:
            return np.ascontiguousarray(given)
        padded = np.zeros(self._shape, dtype=np.int64)
        padded[:, : given.shape[1]] = given[0]
        padded[: len(given), : given.shape[1]] = given
        return padded


class BufferPool:
    """The buffers of a session by shape; each serves one run at a time.

    Args:
        make: makes buffers, given a shape and the number of its CUDA graph.
        recorded: whether runs are recorded as CUDA graphs.
        kept: number of idle buffers to keep, the last used ones.
    """

    def __init__(self, make: Callable[[Shape, int | None], Buffers], *, recorded: bool, kept: int) -> None:
        self._make = make
        self._recorded = recorded
        self._kept = kept
        self._numbers: dict[Shape, int] = {}
        self._lock = threading.Lock()
        self._free: list[tuple[Shape, Buffers]] = []  # the last used at the end

    def take(self, shape: Shape) -> Buffers:
        """Take idle buffers of a shape, or make new ones."""
        with self._lock:
            for i in reversed(range(len(self._free))):
                if self._free[i][0] == shape:
                    return self._free.pop(i)[1]
            number = self._numbers.setdefault(shape, len(self._numbers)) if self._recorded else None
        return self._make(shape, number)

    def give_back(self, shape: Shape, buffers: Buffers) -> None:
        """Return buffers for the next run of their shape."""
        with self._lock:
            self._free.append((shape, buffers))
            del self._free[: -self._kept]
