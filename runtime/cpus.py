"""How many threads this process may use; knows the kernel's affinity mask and cgroup quota, nothing of ONNX Runtime."""

import math
import os
from pathlib import Path


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the CPUs this process may use, at least 1.

    ONNX Runtime sizes its pool from the host, which under a container's quota makes threads that wait for
    each other (microsoft/onnxruntime#7207).

    Args:
        cgroup: the cgroup file system's root, version 1 or 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cpus(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _quota_cpus(cgroup: Path) -> float | None:
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / name).read_text(encoding="ascii") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return None
