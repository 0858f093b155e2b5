"""A rival of a speed bench -> a process of it: installs and exports once what it needs, kept in the cache."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.toolkit.bench import systems
from ptexport.toolkit.bench.report import this_machine
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.rivals import Rival
from ptexport.toolkit.bench.workers import WORKER, Hardware, Worker, placed
from ptexport.toolkit.store.cache import cached_folder


def make_ready(
    name: str, rival: Rival, case: Case, hardware: Hardware, stage: Callable[[str], None]
) -> Callable[[], Worker]:
    """Install and export what a rival needs, unless that is in the cache; returns what starts it.

    Raises:
        BenchError: it cannot be installed or exported here.
        OutputError: the disk refuses.
    """
    if rival.reads_gguf and case.config.gguf is None:
        raise BenchError(f"{name}: reads a GGUF file, and the backbone was not converted from one; leave it out")
    overlay = _overlay(name, rival.requirements, stage) if rival.requirements else None

    def arguments(mode: str, module: str, folder: Path) -> list[str]:
        return [mode, module, str(case.path), str(folder), *placed(hardware)]

    def make(folder: Path) -> None:
        stage(f"making {name} ready (once)")
        with Worker(
            name, WORKER, arguments("prepare", rival.prepares, folder), threads=hardware.threads, overlay=overlay
        ) as worker:
            worker.wait()

    folder = cached_folder("bench", f"{case.digest}-{name}-{_made_with(rival, hardware)}", make=make)
    return lambda: Worker(
        name, WORKER, arguments("serve", rival.system, folder), threads=hardware.threads, overlay=overlay
    )


def _made_with(rival: Rival, hardware: Hardware) -> str:
    """Hash what changes what is made: versions, our own code, and the CPUs that settings are tried on."""
    from importlib.metadata import version

    said = [
        version("torch"),
        version("transformers"),
        version("peft"),
        version("onnxscript"),
        load_onnxruntime().__version__,
        *rival.requirements,
    ]
    said += [this_machine().processor, *placed(hardware)]
    code = [path.read_text("utf-8") for path in sorted(Path(systems.__file__).parent.glob("*.py"))]
    return hashlib.sha256("\n".join(said + code).encode()).hexdigest()[:12]


def _overlay(name: str, requirements: tuple[str, ...], stage: Callable[[str], None]) -> Path:
    """Install packages into a folder of the cache, for processes that are told to look there first."""
    digest = hashlib.sha256("\n".join([sys.version, this_machine().processor, *requirements]).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        stage(f"installing what {name} needs (once): {', '.join(requirements)}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            *requirements,
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
            raise BenchError(
                f"{name}: pip cannot install {', '.join(requirements)} ({lines[-1] if lines else 'silent'})"
            )

    return cached_folder("bench", f"overlay-{name}-{digest}", make=make)
