"""A played CUDA: ONNX Runtime's real CUDA provider opens graphs on a machine without a GPU.

    python tests/played_cuda.py BUNDLE…        prints a table of nodes and kernels

Where nodes are placed, what is fused, whether a CUDA graph is taken, and how many kernels a run launches are ONNX
Runtime's own decisions; answers mean nothing, since kernels do nothing. Needs gcc and nm (Debian's build-essential),
which neither the README nor CI promises. NVIDIA's own libraries must not be in the process.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

SHAPE = (1, 32)
_STATE = "libcublasLt.so.13"  # holds all functions, so that there is one state; the others lead to it


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A graph on the played CUDA.

    Attributes:
        error: why it was refused; None: it was not.
        on_gpu: number of nodes there.
        on_cpu: operators of the other nodes.
        kernels: launched by a run of `SHAPE`.
        captured: CUDA graphs that its runs captured.
    """

    error: str | None = None
    on_gpu: int = 0
    on_cpu: dict[str, int] = {}
    kernels: int = 0
    captured: int = 0


def build(folder: Path) -> None:
    """Write the played libraries into an empty folder."""
    from ptexport.runtime.ort.providers import CUDA, _library, needed_of

    source = Path(__file__).with_suffix(".c")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", _library(CUDA)], capture_output=True, text=True, check=True
    )
    needed = set(re.findall(r" U ((?:__cuda|cu)\w+)", symbols.stdout))
    played = set(re.findall(r"^[\w *]*?\**(\w+)\([^;]*\{", source.read_text(encoding="utf-8"), re.MULTILINE))
    rest = folder / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(needed - played)))
    shared = ["gcc", "-O1", "-w", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*shared, f"-Wl,-soname,{_STATE}", "-o", folder / _STATE, source, rest], check=True)
    rest.write_text("")
    for name in (*(name for name in needed_of(CUDA) if name.startswith("libcu")), "libcuda.so.1"):
        if name != _STATE:
            links = [f"-Wl,-soname,{name}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"]
            subprocess.run([*shared, *links, "-o", folder / name, rest, folder / _STATE], check=True)


def opened(libraries: Path, model: Path) -> dict[bool, Opened]:
    """Open a model file in a process of its own, without and with `cuda_graph`, and run it."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(model)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{model}: {done.stderr[-2000:]}")
    plain, recorded = msgspec.json.decode(done.stdout.splitlines()[-1], type=tuple[Opened, Opened])
    return {False: plain, True: recorded}


class _Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("kernels", "products", "captured")]


def _open(model: Path, *, cuda_graph: bool) -> Opened:
    from ptexport.runtime.errors import ProviderError
    from ptexport.runtime.ort.batch_shapes import Buckets
    from ptexport.runtime.ort.graph import Graph
    from ptexport.runtime.ort.providers import CUDA, choose_provider, placement

    counts = _Counts.in_dll(ctypes.CDLL(_STATE), "played")
    provider = choose_provider("cuda", cuda_graph=cuda_graph)
    try:
        graph = Graph.open(model, provider=provider, threads=1, buckets=Buckets.up_to(64))
    except ProviderError as e:
        return Opened(error=str(e))
    placed = placement(graph.session) or []
    overridable = {value.name for value in graph.session.get_overridable_initializers()}
    ids = {name: np.ones(SHAPE, dtype=np.int64) for name in graph.inputs if name not in overridable}
    before = counts.captured
    graph.run(ids)
    captured = counts.captured - before
    before = counts.kernels
    graph.run(ids)
    return Opened(
        on_gpu=sum(name == CUDA for name, _ in placed),
        on_cpu=Counter(operator for name, operator in placed if name != CUDA),
        kernels=counts.kernels - before,
        captured=captured,
    )


def _table(bundles: list[str]) -> None:
    print("nodes on the GPU | kernels a run | CUDA graph | bundle")
    with TemporaryDirectory() as folder:
        build(Path(folder))
        for bundle in bundles:
            found = opened(Path(folder), Path(bundle) / "model.onnx")
            plain, recorded = found[False], found[True]
            taken = "captured" if recorded.captured else f"refused ({recorded.error})"
            print(plain.error or f"{plain.on_gpu} | {plain.kernels} | {taken} | {bundle}; on the CPU: {plain.on_cpu}")


def _main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        both: list[Any] = [_open(Path(arguments[1]), cuda_graph=cuda_graph) for cuda_graph in (False, True)]
        print(json.dumps([msgspec.to_builtins(one) for one in both]))
    else:
        _table(arguments)


if __name__ == "__main__":
    _main(sys.argv[1:])
