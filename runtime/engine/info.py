"""A loaded graph -> EngineInfo: provider, placement and versions."""

from collections import Counter
from importlib.metadata import version

import msgspec

from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import CPU, load_onnxruntime, placement


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What runs where.

    Attributes:
        provider: ONNX Runtime's name of the execution provider that runs the graph.
        degraded: why provider "auto" chose the CPU; None: it did not, or no GPU was found.
        device: number of the GPU, or of a plugin's device among those that it lists; 0 on the CPU.
        hardware: what a plugin says of its device, such as "CPU, Intel"; None: the provider is not a plugin.
        threads: number of CPUs that the session uses.
        placement: number of nodes by provider; None: all are on the CPU, or this ONNX Runtime cannot tell.
        cuda_graph: whether runs are recorded as CUDA graphs and replayed.
        golden_max_abs_diff: largest absolute difference of a logit of the golden rows when the bundle was opened.
        bundle: digest of the manifest.
        weights_sha256: sha256 of the weights file, which is the same for all bundles of a backbone.
        versions: versions of onnxruntime, tokenizers, numpy and ptexport.
    """

    provider: str
    degraded: str | None
    device: int
    hardware: str | None
    threads: int
    placement: dict[str, int] | None
    cuda_graph: bool
    golden_max_abs_diff: float
    bundle: str
    weights_sha256: str
    versions: dict[str, str]


def info_of(graph: Graph, *, golden_max_abs_diff: float, bundle: str, weights_sha256: str) -> EngineInfo:
    """Describe a loaded graph; the other arguments are attributes of `EngineInfo`."""
    placed = placement(graph.session) if graph.provider.name != CPU else None
    versions = {name: version(name) for name in ("tokenizers", "numpy", "ptexport")}
    return EngineInfo(
        provider=graph.provider.name,
        degraded=graph.provider.degraded,
        device=graph.provider.device,
        hardware=graph.provider.hardware,
        threads=graph.threads,
        placement=None if placed is None else dict(Counter(name for name, _ in placed)),
        cuda_graph=graph.provider.cuda_graph,
        golden_max_abs_diff=golden_max_abs_diff,
        bundle=bundle,
        weights_sha256=weights_sha256,
        versions={"onnxruntime": load_onnxruntime().__version__, **versions},
    )
