"""A bundle -> seconds from the start of a process to its first prediction, and memory of the process and of the GPU."""

import shutil
import subprocess
import time
from collections.abc import Iterator

from ptexport.runtime.ort.cpus import available_cpus
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job
from ptexport.toolkit.bench.workers import Hardware, bundle_worker

_STARTS = 3


def measure(job: Job) -> Iterator[Finding]:
    """Start some processes; the first may read the files from the disk.

    Raises:
        BenchError: a process fails.
    """
    start = bundle_worker("start", job.bundle, Hardware(threads=available_cpus(), provider=job.provider))
    for number in range(_STARTS):
        before, started = _gpu_mb(job), time.perf_counter()
        with start() as worker:
            worker.receive()
            response = worker.request(["a text"])
            values = {"first prediction (s)": time.perf_counter() - started}
            values["memory (MB)"] = response["resident_bytes"] / 1e6
            after = _gpu_mb(job)
        if before is not None and after is not None:
            values["GPU memory (MB)"] = after - before
        yield Finding(what=f"start {number + 1}", ok=True, values=values)


def _gpu_mb(job: Job) -> float | None:
    """Read how much memory of the GPU all processes use; None: nvidia-smi is missing or cannot tell."""
    if job.provider == "cpu" or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return float(said) * 1.048576 if said.isdecimal() else None  # "[N/A]" where the memory is the machine's
