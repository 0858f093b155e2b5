"""What the machine has: the checks of `ptexport doctor`, and the GPU."""

from collections.abc import Iterator

from ptexport.runtime.ort.cuda_driver import read_gpu
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job
from ptexport.toolkit.evaluation.doctor import examine


def measure(job: Job) -> Iterator[Finding]:
    """Run all checks; a missing extra is no failure here.

    Raises:
        ProviderError: there is no GPU.
    """
    if job.provider != "cpu":
        gpu = read_gpu(0)
        said = f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.driver_cuda}"
        yield Finding(what="GPU", ok=True, said=said, values={"memory (GB)": gpu.memory_bytes / 1e9})
    for check in examine():
        yield Finding(what=check.name, ok=True, said=f"{check.found}{f'; {check.missing}' if check.missing else ''}")
