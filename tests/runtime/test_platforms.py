"""The runtime where the system lacks what Linux has: simulated, since no Windows and no macOS is at hand."""

import subprocess
import sys
from pathlib import Path

import pytest

WINDOWS = """
import os, sys
missing = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "uvloop"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
for name in missing - {"posix"}:
    sys.modules.pop(name, None)
for name in ("fork", "geteuid", "getuid", "mkfifo", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "pread",
             "register_at_fork", "sched_getaffinity", "statvfs"):
    delattr(os, name)
"""
MACOS = """
import os
for name in ("O_PATH", "O_TMPFILE", "memfd_create", "sched_getaffinity"):
    delattr(os, name)
"""
ASK = """
import asyncio, pkgutil, importlib
from pathlib import Path
import ptexport.runtime
from ptexport.runtime import Engine, Task
for module in pkgutil.iter_modules(ptexport.runtime.__path__):
    importlib.import_module(f"ptexport.runtime.{module.name}")
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.errors import OutputError
from ptexport.runtime.rows.row import Row
from ptexport.runtime.label_file import label_file
assert available_cpus() >= 1
with Engine.open(sys.argv[1]) as engine:
    assert engine.info.golden_max_abs_diff < 1e-3
    assert len(list(engine.predict_iter(["slow", "dull"]))) == len(asyncio.run(engine.predict_async(["", "it"]))) == 2
    rows = iter([Row(where="rows line 1", text="slow")])
    how = dict(resume=False, force=False, strict=False, top_k=None, report=lambda done: None)
    try:
        print(label_file(engine, rows, Path(sys.argv[2]), **how).rows)
    except OutputError as e:
        print(e)
"""


@pytest.mark.parametrize(
    ("system", "said"),
    [
        (WINDOWS, "{out}: got no file locks from this system, which writing needs; print the predictions instead"),
        (MACOS, "1"),
    ],
    ids=["windows", "macos"],
)
def test_what_a_system_lacks(system: str, said: str, llama_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", system + "import sys\n" + ASK, str(llama_bundle), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, said.format(out=out) + "\n", "")
    assert [path.name for path in tmp_path.iterdir()] == (["out.jsonl"] if said == "1" else [])


def test_control_the_simulation_lacks_it() -> None:
    code = "import os, sys" + WINDOWS + "import fcntl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'fcntl'" in done.stderr
