"""The worker process of one system.

    python -m ptexport.toolkit.bench.systems.worker prepare|serve MODULE CASE FOLDER THREADS PROVIDER

`prepare` fills FOLDER and ends. `serve` opens the system and describes it in its first response. Each request is a
list of texts; the response has their logits, the latency in seconds and the memory of the process.
"""

import importlib
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import PtexportError
from ptexport.toolkit.bench.workers import Hardware


def main() -> None:
    """Prepare or run the system that the arguments name."""
    mode, module_name, case_path, folder, threads, provider = sys.argv[1:]
    warnings.simplefilter("ignore")
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries goes to standard error
    module: Any = importlib.import_module(f"ptexport.toolkit.bench.systems.{module_name}")
    hardware = Hardware(threads=int(threads), provider=provider)
    _use_threads(hardware.threads)
    case = None
    if case_path:
        from ptexport.toolkit.bench.systems.case import Case

        case = Case.open(Path(case_path))
    if mode == "prepare":
        module.prepare(case, Path(folder), hardware)
        return
    system = module.SYSTEM(case, Path(folder), hardware)

    def respond(record: dict[str, object]) -> None:
        responses.write(json.dumps(record) + "\n")
        responses.flush()

    respond({"setting": system.setting, "files": _sizes(system.files), "task_files": _sizes(system.task_files)})
    for line in sys.stdin:
        texts = [text if isinstance(text, str) else tuple(text) for text in json.loads(line)]
        started = time.perf_counter()
        logits = system.logits(texts)
        seconds = time.perf_counter() - started
        respond({"logits": logits, "seconds": seconds, **_memory()})


def _use_threads(threads: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _sizes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _memory() -> dict[str, int]:
    """Return the resident and the peak memory of this process in bytes."""
    status = Path("/proc/self/status").read_text("utf-8")
    found = {}
    for key, name in (("resident_bytes", "VmRSS"), ("peak_bytes", "VmHWM")):
        match = re.search(rf"{name}:\s+(\d+) kB", status)
        assert match is not None, name
        found[key] = int(match[1]) * 1024
    return found


if __name__ == "__main__":
    try:
        main()
    except PtexportError as e:
        sys.exit(str(e))
