"""How many threads this process may use; knows the kernel's affinity mask and cgroup quota, nothing of ONNX Runtime."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Count the CPUs this process may use, at least 1.

    ONNX Runtime sizes its pool from the host, which under a container's quota makes threads that wait for
    each other (microsoft/onnxruntime#7207).

    Args:
        cgroup: the cgroup file system's root, version 1 or 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cpus(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def quota_cpus(cgroup: Path = _CGROUP) -> float | None:
    """Read how many CPUs' time the container has; None: no less than the machine's.

    Threads that spin while they wait use that time up, so ONNX Runtime's do not where there is a quota.
    """
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / name).read_text(encoding="ascii") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return None
