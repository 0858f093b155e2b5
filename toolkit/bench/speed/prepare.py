"""A baseline -> a function that starts its process; what it needs once is installed or exported into the cache."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.toolkit.bench import systems
from ptexport.toolkit.bench.report import this_machine
from ptexport.toolkit.bench.systems.baselines import SETTING, Baseline
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.workers import SYSTEM_WORKER, Hardware, Worker
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.store.cache import cached_folder


def own_graph_worker(
    name: str, baseline: Baseline, bundle: Path, hardware: Hardware, progress: Progress
) -> Callable[[], Worker]:
    """Install what a baseline needs to run the bundle's own graph, and return a function that starts it.

    Raises:
        BenchError: it cannot be installed here.
        OutputError: the cache cannot be written.
    """
    overlay = _overlay(baseline.requirements, progress)
    arguments = ["serve", baseline.system, "", str(bundle), *hardware.arguments()]
    return lambda: Worker(name, SYSTEM_WORKER, arguments, threads=hardware.threads, overlay=overlay)


def prepare_baseline(
    name: str, baseline: Baseline, case: Case, hardware: Hardware, progress: Progress
) -> Callable[[], Worker]:
    """Install and export what a baseline needs, unless it is in the cache, and return a function that starts it.

    Raises:
        BenchError: it cannot be installed or exported here.
        OutputError: the cache cannot be written.
    """
    if baseline.reads_gguf and case.config.gguf is None:
        raise BenchError(f"{name}: reads a GGUF file, and this backbone was not converted from one; leave it out")
    overlay = _overlay(baseline.requirements, progress) if baseline.requirements else None

    def start(mode: str, module: str, folder: Path) -> Worker:
        arguments = [mode, module, str(case.path), str(folder), *hardware.arguments()]
        return Worker(name, SYSTEM_WORKER, arguments, threads=hardware.threads, overlay=overlay)

    def make(folder: Path) -> None:
        progress.stage(f"preparing {name} (once)")
        if baseline.setting is not None:
            (folder / SETTING).write_text(json.dumps({"setting": baseline.setting}), encoding="utf-8")
        if baseline.prepares is not None:
            with start("prepare", baseline.prepares, folder) as worker:
                worker.wait()

    folder = cached_folder("bench", f"{case.digest}-{name}-{_digest(baseline, hardware)}", make=make)
    return lambda: start("serve", baseline.system, folder)


def _digest(baseline: Baseline, hardware: Hardware) -> str:
    """Hash what the prepared files depend on: versions, this package's code, and the hardware that is tuned for."""
    packages = ("torch", "transformers", "peft", "onnxscript")
    used = [*map(version, packages), load_onnxruntime().__version__, *baseline.requirements]
    used += [this_machine().processor, *hardware.arguments()]
    code = [path.read_text("utf-8") for path in sorted(Path(systems.__file__).parent.glob("*.py"))]
    return hashlib.sha256("\n".join(used + code).encode()).hexdigest()[:12]


def _overlay(requirements: tuple[str, ...], progress: Progress) -> Path:
    """Install packages into a folder of the cache that takes precedence in the baseline's processes."""
    name = requirements[0].partition("==")[0]
    digest = hashlib.sha256("\n".join([sys.version, this_machine().processor, *requirements]).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        progress.stage(f"installing {', '.join(requirements)} (once)")
        options = ("--quiet", "--no-deps", "--target", str(folder))
        command = [sys.executable, "-m", "pip", "install", *options, *requirements]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
            reason = lines[-1] if lines else "no output"
            raise BenchError(f"{name}: pip cannot install {', '.join(requirements)} ({reason}); leave it out")

    return cached_folder("bench", f"overlay-{name}-{digest}", make=make)
