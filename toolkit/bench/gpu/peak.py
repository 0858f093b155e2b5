"""The card's rates: large products in each precision, and copies, as `bench speed` measures them."""

from collections.abc import Iterator

from ptexport.runtime.ort.cpus import available_cpus
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job
from ptexport.toolkit.bench.workers import PEAK_WORKER, Hardware, Worker


def measure(job: Job) -> Iterator[Finding]:
    """Measure once.

    Raises:
        BenchError: PyTorch, which measures a GPU, cannot.
    """
    hardware = Hardware(threads=available_cpus(), provider=job.provider)
    with Worker("peak", PEAK_WORKER, hardware.arguments(), threads=hardware.threads) as worker:
        for name, rate in worker.request("measure").items():
            yield Finding(what=name, ok=rate > 0, values={"10^9 per second": rate / 1e9})
