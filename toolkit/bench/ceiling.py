"""What this machine's arithmetic and memory can do at most: a process that measures it each time it is asked.

    python -m ptexport.toolkit.bench.ceiling THREADS

Answers each line with the rates of a large product of float32 matrices, of one of int8 ones, and of copying memory.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ptexport.runtime.providers import load_onnxruntime

SIZE = 2048  # of the square matrices
COPIED_BYTES = 1 << 28  # more than caches hold
TURNS = 3


def main() -> None:
    """Answer lines until there are no more."""
    random = np.random.default_rng(0)
    floats = [random.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(2)]
    integers = [
        random.integers(0, 200, (SIZE, SIZE)).astype(np.uint8),
        random.integers(-90, 90, (SIZE, SIZE)).astype(np.int8),
    ]
    threads = int(sys.argv[1])
    product, integer_product = (_product(kind, threads) for kind in ("MatMul", "MatMulInteger"))
    copy = _copying(threads)
    operations = 2 * SIZE**3
    for _ in sys.stdin:
        rates = {
            "sgemm_flops": operations / _quickest(lambda: product(*floats)),
            "int8_ops": operations / _quickest(lambda: integer_product(*integers)),
            "copy_bytes": 2 * COPIED_BYTES / _quickest(copy),  # read and written
        }
        sys.stdout.write(json.dumps(rates) + "\n")
        sys.stdout.flush()


def _quickest(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TURNS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _copying(threads: int) -> Callable[[], object]:
    """Make what copies memory, a part in each thread."""
    source, target = np.ones(COPIED_BYTES, dtype=np.uint8), np.zeros(COPIED_BYTES, dtype=np.uint8)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts))  # which NumPy does without the GIL


def _product(kind: str, threads: int) -> Callable[..., Any]:
    """Make a graph of one product; ONNX Runtime's own is what a bundle can hope for."""
    import onnx_ir as ir

    types = {"MatMul": ("FLOAT", "FLOAT", "FLOAT"), "MatMulInteger": ("UINT8", "INT8", "INT32")}[kind]
    left, right, out = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType[type_]), shape=ir.Shape([SIZE, SIZE]))
        for name, type_ in zip(("left", "right", "out"), types, strict=True)
    )
    node = ir.node(kind, [left, right], outputs=[out])
    graph = ir.Graph([left, right], [out], nodes=[node], opset_imports={"": 18}, name=kind)
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda one, two: session.run(None, {"left": one, "right": two})


if __name__ == "__main__":
    main()
