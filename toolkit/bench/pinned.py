"""Entry point of a worker process: restricts it to some CPUs, ties it to the bench's lifetime, and runs a module.

    python -m ptexport.toolkit.bench.pinned THREADS MODULE ARGUMENT...

This happens in the new process because code between fork and exec deadlocks if the parent has threads.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Restrict this process to THREADS CPUs and run MODULE as `__main__`."""
    threads, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        # The kernel kills this process when the bench ends, however it ends; else a server would keep running.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
