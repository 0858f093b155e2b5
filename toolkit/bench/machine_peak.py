"""A worker process that measures this machine's peak arithmetic and memory rates, once per request.

    python -m ptexport.toolkit.bench.machine_peak THREADS PROVIDER

A response has the rates of a large float32 matrix product, of an int8 one, and of copying memory; of a GPU also
those of products in TF32, fp16 and bf16. CPUs are timed with the clock, a GPU with CUDA events.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.ort.providers import load_onnxruntime

SIZE, GPU_SIZE = 2048, 8192  # rows and columns of the matrices
COPIED_BYTES = 1 << 28  # larger than the caches
TRIALS = 3

Rates = Callable[[], dict[str, float]]


def main() -> None:
    """Respond to each line of standard input."""
    measure = _on_cpus(int(sys.argv[1])) if sys.argv[2] == "cpu" else _on_gpu()
    for _ in sys.stdin:
        sys.stdout.write(json.dumps(measure()) + "\n")
        sys.stdout.flush()


def _on_cpus(threads: int) -> Rates:
    random = np.random.default_rng(0)
    floats = [random.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(2)]
    integers = [
        random.integers(0, 200, (SIZE, SIZE)).astype(np.uint8),
        random.integers(-90, 90, (SIZE, SIZE)).astype(np.int8),
    ]
    product, integer_product = _product("MatMul", floats[1], threads), _product("MatMulInteger", integers[1], threads)
    copy = _copying(threads)

    def seconds(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return lambda: _rates(SIZE, seconds, lambda: product(floats[0]), lambda: integer_product(integers[0]), copy)


def _on_gpu() -> Rates:
    """Measure the GPU that PyTorch uses, float32 in full precision as graphs run."""
    import torch

    event: Any = torch.cuda.Event  # has no types

    floats = [torch.randn(GPU_SIZE, GPU_SIZE, device="cuda") for _ in range(2)]
    integers = [torch.randint(-90, 90, (GPU_SIZE, GPU_SIZE), device="cuda", dtype=torch.int8) for _ in range(2)]
    source, target = (torch.zeros(COPIED_BYTES, device="cuda", dtype=torch.uint8) for _ in range(2))

    def seconds(run: Callable[[], object]) -> float:
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000

    halves = {
        name: [some.to(dtype) for some in floats] for name, dtype in (("fp16", torch.half), ("bf16", torch.bfloat16))
    }

    def others() -> dict[str, float]:
        """Measure the products that only a GPU has."""
        torch.backends.cuda.matmul.allow_tf32 = True
        pairs = {"tf32": floats, **halves}
        times = {name: min(seconds(partial(torch.mm, *pair)) for _ in range(TRIALS)) for name, pair in pairs.items()}
        torch.backends.cuda.matmul.allow_tf32 = False
        return {f"{name}_flops": 2 * GPU_SIZE**3 / fastest for name, fastest in times.items()}

    return lambda: (
        others()
        | _rates(
            GPU_SIZE,
            seconds,
            lambda: torch.mm(*floats),
            lambda: torch._int_mm(integers[0], integers[1].T),
            lambda: target.copy_(source),
        )
    )


def _rates(
    size: int,
    seconds: Callable[[Callable[[], object]], float],
    product: Callable[[], object],
    integer_product: Callable[[], object],
    copy: Callable[[], object],
) -> dict[str, float]:
    """Compute operations and bytes per second from the fastest of `TRIALS` trials."""

    def fastest(run: Callable[[], object]) -> float:
        return min(seconds(run) for _ in range(TRIALS))

    operations = 2 * size**3
    return {
        "sgemm_flops": operations / fastest(product),
        "int8_ops": operations / fastest(integer_product),
        "copy_bytes": 2 * COPIED_BYTES / fastest(copy),  # read and written
    }


def _copying(threads: int) -> Callable[[], object]:
    """Return a function that copies memory, one part per thread."""
    source, target = np.ones(COPIED_BYTES, dtype=np.uint8), np.zeros(COPIED_BYTES, dtype=np.uint8)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts))  # NumPy releases the GIL


def _product(kind: str, weights: NDArray[Any], threads: int) -> Callable[[NDArray[Any]], object]:
    """Return a function that runs a graph of one product with constant weights in ONNX Runtime."""
    import onnx_ir as ir

    types = {"MatMul": (ir.DataType.FLOAT, ir.DataType.FLOAT), "MatMulInteger": (ir.DataType.UINT8, ir.DataType.INT32)}
    left, out = (
        ir.Value(name=name, type=ir.TensorType(type_), shape=ir.Shape([SIZE, SIZE]))
        for name, type_ in zip(("left", "out"), types[kind], strict=True)
    )
    right = ir.Value(name="right", const_value=ir.tensor(weights, name="right"))
    node = ir.node(kind, [left, right], outputs=[out])
    graph = ir.Graph([left], [out], nodes=[node], initializers=[right], opset_imports={"": 18}, name=kind)
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {"left": array})


if __name__ == "__main__":
    main()
