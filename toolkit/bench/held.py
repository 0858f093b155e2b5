"""A process of a bench starts here: keeps to some CPUs, ends with the bench, and becomes the module it is told.

    python -m ptexport.toolkit.bench.held THREADS MODULE ARGUMENT...

In the process itself: what a process does between fork and exec deadlocks where its parent has threads.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Do what the arguments say."""
    threads, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        # However the bench ends, nobody else would stop a server.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
