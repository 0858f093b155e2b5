"""The wheel, as users install it: every module and data file is in it, and it runs from an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("runtime", "toolkit", "exporters")
SHIPPED = (".py", ".json", ".jinja", ".typed", ".html", ".css", ".js", ".svg")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it from a copy, since setuptools would find what an earlier build left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(out), str(source)], check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_it_holds_every_module_and_data_file(wheel: Path) -> None:
    packed = {name.removeprefix("ptexport/") for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED
    }
    assert packed == ours


def test_it_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """With what is installed here, and the wheel's modules in place of this checkout's."""
    site, place = tmp_path / "site", tmp_path / "empty"
    place.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        "import sys, pkgutil, importlib\n"
        f"sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import ptexport.runtime, ptexport.toolkit, ptexport.exporters\n"
        "for package in (ptexport.runtime, ptexport.toolkit, ptexport.exporters):\n"
        f"    assert package.__file__.startswith({str(site)!r}), package.__file__\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "from ptexport.exporters.targets.tensorrt import tensorrt_operators\n"
        "tensorrt_operators()\n"
        "sys.argv = ['ptexport', '--help']\n"
        "from ptexport.toolkit.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
