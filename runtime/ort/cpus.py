"""The number of CPUs that this process may use, from the affinity mask and the cgroup quota."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Count the CPUs that this process may use, at least 1.

    ONNX Runtime sizes its thread pool by the host's CPUs. Under a container's quota these are too many threads, which
    wait for each other (microsoft/onnxruntime#7207).

    Args:
        cgroup: root of the cgroup file system, version 1 or 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cpus(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def quota_cpus(cgroup: Path = _CGROUP) -> float | None:
    """Read the CPU quota of the container, in CPUs; None: there is no quota.

    Threads that spin while they wait use the quota up, so under a quota ONNX Runtime's threads do not spin.
    """
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / name).read_text(encoding="ascii") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return None
