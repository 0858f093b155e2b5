"""Where ONNX Runtime puts the nodes of a bundle, and whether its golden rows have the logits of the original model."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ptexport.runtime import Engine
from ptexport.runtime.ort.providers import CPU, placement
from ptexport.toolkit.bench.gpu.child import Scorer, provider_of
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job


def measure(job: Job) -> Iterator[Finding]:
    """Open the graph, then the bundle as users do.

    Raises:
        ProviderError: a product would run elsewhere than on the provider.
        BundleError: the golden rows have other logits here.
    """
    provider = provider_of(job)
    scorer = Scorer(job, provider)
    placed = (placement(scorer.graph.session) or []) if provider.name != CPU else []
    elsewhere = Counter(op_type for name, op_type in placed if name != provider.name)
    on_it = len(placed) - elsewhere.total()
    left = ", ".join(f"{n} {op_type}" for op_type, n in elsewhere.most_common())
    said = f"elsewhere: {left}" if left else "all on the provider"
    values = {"nodes": float(on_it), "elsewhere": float(elsewhere.total()), "open (s)": scorer.open_s}
    yield Finding(what="placement", ok=bool(on_it) or provider.name == CPU, said=said, values=values)
    del scorer
    with Engine.open(Path(job.bundle), provider=job.provider) as engine:
        worst = engine.info.golden_max_abs_diff
        yield Finding(what="golden rows", ok=True, said=engine.info.provider, values={"largest |Δlogit|": worst})
