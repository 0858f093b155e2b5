"""Run the programs in docs/embedding.md with other versions of the runtime's dependencies.

    python examples/versions.py BUNDLE PAIRS_BUNDLE "onnxruntime==1.18.0 numpy==1.26.4" "onnxruntime==1.32.0" …

Each set of versions gets a temporary virtual environment of this Python with this repository's base install.
"""

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "embedding.md"
VERSIONS = """
import platform
from importlib.metadata import distributions
names = ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "msgspec")
found = {d.metadata["Name"]: d.version for d in distributions()}
print("Python", platform.python_version(), *(f"{name} {found[name]}" for name in names if name in found), sep=", ")
"""


def programs() -> list[str]:
    """Return the page's Python blocks."""
    return [block.split("```")[0] for block in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]]


def run_programs(python: str, bundle: Path, pairs: Path, place: Path) -> Iterator["subprocess.CompletedProcess[str]"]:
    """Run each program as a file, in a folder with the bundles that the page uses, and yield the finished process."""
    for name, path in (("demo", bundle), ("pairs", pairs)):
        (place / "build" / name).mkdir(parents=True)
        (place / "build" / name / "bundle").symlink_to(path.resolve())
    for number, program in enumerate(programs()):
        script = place / f"program_{number}.py"
        script.write_text(program, encoding="utf-8")
        done = subprocess.run(
            [python, str(script)], cwd=place, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"program {number} of {PAGE.name}: {done.stderr or done.returncode}")
        yield done


def main() -> None:
    """Run the programs with every given set of requirements."""
    bundle, pairs = Path(sys.argv[1]), Path(sys.argv[2])
    for requirements in sys.argv[3:]:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            venv.create(place / "venv", with_pip=True)
            python = str(place / "venv" / "bin" / "python")
            command = [python, "-m", "pip", "install", "--quiet", str(ROOT), *requirements.split()]
            subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
            asked = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
            warned = [done.stderr for done in run_programs(python, bundle, pairs, place)]
            print(f"{asked.stdout.strip()}: {len(warned)} programs ran", *filter(None, warned), sep="\n", flush=True)


if __name__ == "__main__":
    main()
