"""`ptexport bench speed` on some sizes -> its sentences, latencies, and shares of the card's rates by precision."""

from collections.abc import Iterator
from pathlib import Path

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.gpu.child import ptexport
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job
from ptexport.toolkit.bench.report import BenchReport

_RATES = {"fp32": "sgemm_flops", "fp16": "fp16_flops", "bf16": "bf16_flops"}


def measure(job: Job) -> Iterator[Finding]:
    """Measure; the whole report stays in the folder `out`.

    Raises:
        BenchError: nothing could be measured.
    """
    against = ",".join([*(path for path in job.variants if Path(path).is_dir()), *job.rivals])
    sizes = ",".join(f"{batch}x{tokens}" for batch, tokens in job.sizes)
    given = ("--run", Path(job.case) / "run", "--provider", job.provider, "--sizes", sizes, "--quick")
    compared = ("--against", against) if against else ()
    done = ptexport("bench", "speed", job.bundle, *compared, *given, "--out", job.out, "--force")
    if done.returncode:
        raise BenchError((done.stderr.strip().splitlines() or ["bench speed: failed without a word"])[-1])
    report = BenchReport.read(Path(job.out))
    yield from _latencies(report)
    yield from (Finding(what="verdict", ok=True, said=sentence) for sentence in report.verdict)
    yield from (Finding(what=name, ok=False, said=why) for name, why in report.left_out.items())


def _latencies(report: BenchReport) -> Iterator[Finding]:
    """Say how long each system takes at each size, and what share of the card's product rate in its precision."""
    figures = {figure.name: figure.value for figure in report.figures}
    for name, value in figures.items():
        kind, *system, size = name.split("/")
        if kind != "time":
            continue
        batch = int(size.split("x")[0])
        values = {"ms": value, "texts/s": 1000 * batch / value}
        precision = next((known for known in _RATES if known in "/".join(system)), "fp32")
        rate, work = figures.get(f"machine/{_RATES[precision]}"), figures.get(f"work/{size}")
        if rate and work:
            values["share of product rate"] = work / (value / 1000) / rate
        yield Finding(what=f"{'/'.join(system)}, {size}", ok=True, values=values)
