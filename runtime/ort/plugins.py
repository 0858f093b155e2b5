"""Execution providers that come as plugins: find them, register them, and choose one of their devices.

ONNX Runtime loads a plugin's library once per process, and the library then lists the devices that it can use.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import pkgutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.known_plugins import BF16_TOLERANCE, KNOWN_PLUGINS, MODULE_PREFIX, KnownPlugin
from ptexport.runtime.ort.providers import (
    Provider,
    full_name,
    load_onnxruntime,
    onnxruntime_errors,
    shorten_error,
)

_registered: set[str] = set()  # libraries
_registering = threading.Lock()
_NAMES = ("FULL_DEVICE_NAME", "Description")  # in the metadata of OpenVINO's devices, and of ONNX Runtime's on Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that a plugin lists.

    Attributes:
        kind: "cpu", "gpu" or "npu".
        description: what the plugin and ONNX Runtime say of it, such as "CPU, Intel".
        own_name: the plugin's own name of the device, such as OpenVINO's "GPU.1".
        handle: an OrtEpDevice.
    """

    kind: str
    description: str
    own_name: str
    handle: Any


def installed_plugins() -> list[KnownPlugin]:
    """List the plugins that are installed, also those that ptexport knows nothing of; imports none of them."""
    known = {plugin.module: plugin for plugin in KNOWN_PLUGINS.values()}
    modules = sorted(module.name for module in pkgutil.iter_modules())
    found = [name for name in modules if name.startswith(MODULE_PREFIX) or name in known]
    return [known.get(name) or _unknown(name) for name in found]


def find_plugin(name: str) -> KnownPlugin | None:
    """Find the plugin that a value of `--provider` names: one that ptexport knows, or an installed one.

    Args:
        name: short name, or ONNX Runtime's name of the execution provider of an installed plugin.

    Returns:
        The plugin, which may not be installed; None: the provider is built into ONNX Runtime, or unknown.
    """
    if name in KNOWN_PLUGINS:
        return KNOWN_PLUGINS[name]
    if name == "auto" or full_name(name) in load_onnxruntime().get_available_providers():
        return None
    for plugin in installed_plugins():
        with contextlib.suppress(ProviderError):  # a plugin that cannot be imported has no name
            if name == plugin.name or (name.endswith("ExecutionProvider") and name == _ep_name(plugin)):
                return plugin
    return None


def choose_plugin(plugin: KnownPlugin, device: int | str, threads: int, options: Mapping[str, str]) -> Provider:
    """Choose a device of a plugin.

    Args:
        plugin: the plugin.
        device: kind of the device, of which the first is taken, or its number among those that the plugin lists.
        threads: CPUs to use, if the plugin runs on CPUs.
        options: the plugin's own options, which come before ours.

    Raises:
        ProviderError: the plugin is not installed, cannot be loaded, or lists no such device.
    """
    listed = list_devices(plugin)
    numbers = [number for number, its in enumerate(listed) if device in (number, its.kind)]
    if not numbers:
        raise ProviderError(f"provider {plugin.name}: {_lacking(plugin, device, listed)}")
    chosen = listed[numbers[0]]
    its = dict(plugin.options)
    if plugin.threads is not None and chosen.kind == "cpu":
        its[plugin.threads] = str(threads)
    its |= options
    in_bf16 = plugin.precision is not None and its.get(plugin.precision) == "bf16"
    if plugin.json_option is not None:
        its = {plugin.json_option: json.dumps({chosen.own_name: its})}
    return Provider(
        name=chosen.handle.ep_name,
        device=numbers[0],
        options=tuple(its.items()),
        ep_device=chosen.handle,
        hardware=chosen.description,
        tolerance=BF16_TOLERANCE if in_bf16 else plugin.tolerance,
    )


def list_devices(plugin: KnownPlugin) -> list[Device]:
    """List the devices of a plugin, in its order; registers it with ONNX Runtime.

    Raises:
        ProviderError: the plugin is not installed, or cannot be loaded.
    """
    name = _register(plugin)
    return [_describe(handle) for handle in load_onnxruntime().get_ep_devices() if handle.ep_name == name]


def _register(plugin: KnownPlugin) -> str:
    """Register a plugin once; returns ONNX Runtime's name of its execution provider."""
    onnxruntime = load_onnxruntime()
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise ProviderError(
            f"provider {plugin.name}: onnxruntime {onnxruntime.__version__} takes no plugins, need 1.23; install it"
        )
    name = _ep_name(plugin)
    library = _ask_wheel(plugin, "get_library_path")
    with _registering:
        has_devices = any(
            handle.ep_name == name for handle in onnxruntime.get_ep_devices()
        )  # the program registered it
        if library not in _registered and not has_devices:
            try:
                onnxruntime.register_execution_provider_library(name, library)
            except onnxruntime_errors() as e:
                raise ProviderError(
                    f"provider {plugin.name}: {described(plugin)} cannot be loaded by onnxruntime "
                    f"{onnxruntime.__version__} ({shorten_error(e)}); install versions that go together"
                ) from e
            _registered.add(library)
    return name


@functools.cache
def _ep_name(plugin: KnownPlugin) -> str:
    """Return ONNX Runtime's name of a plugin's execution provider."""
    if importlib.util.find_spec(plugin.module) is None:
        raise ProviderError(f"provider {plugin.name}: is not installed; pip install {plugin.wheel}")
    return _ask_wheel(plugin, "get_ep_name")


def _ask_wheel(plugin: KnownPlugin, function: str) -> str:
    """Call a function of a plugin's module; whatever its maker's code raises, the caller gets one sentence."""
    try:
        return str(getattr(importlib.import_module(plugin.module), function)())
    except Exception as e:
        raise ProviderError(
            f"provider {plugin.name}: {described(plugin)} cannot be loaded ({e}); install it again"
        ) from e


def described(plugin: KnownPlugin) -> str:
    """Return the wheel of a plugin and its version."""
    for wheel in (plugin.wheel, *packages_distributions().get(plugin.module, [])):
        try:
            return f"{wheel} {version(wheel)}"
        except PackageNotFoundError:
            continue
    return plugin.module


def _unknown(module: str) -> KnownPlugin:
    """Make the entry of an installed plugin that ptexport knows nothing of."""
    name = module.removeprefix(MODULE_PREFIX).replace("_", "-")
    return KnownPlugin(name=name, module=module, wheel=module.replace("_", "-"))


def _describe(handle: Any) -> Device:
    kind = str(handle.device.type.name)
    said = {**handle.device.metadata, **handle.ep_metadata}
    names = [said[key] for key in _NAMES if said.get(key)][:1] or [handle.device.vendor]
    return Device(
        kind=kind.lower(),
        description=", ".join([kind, *filter(None, names)]),
        own_name=said.get("ov_device", kind),
        handle=handle,
    )


def shown(listed: Sequence[Device]) -> str:
    """Return a list of devices with their numbers, for people."""
    return "; ".join(f"{number}: {its.description}" for number, its in enumerate(listed))


def why_no_device(plugin: KnownPlugin) -> str:
    """Say why a plugin that could be loaded lists no device: which hardware ONNX Runtime shows it, and what helps."""
    onnxruntime = load_onnxruntime()
    state = onnxruntime.capi.onnxruntime_pybind11_state
    machine = state.get_hardware_devices() if hasattr(state, "get_hardware_devices") else []  # since 1.24
    found = ", ".join(f"{its.type.name} of {its.vendor or 'an unknown maker'}" for its in machine)
    hardware = f", which is shown {found}" if found else ""
    return f"{described(plugin)} lists no device on this machine{hardware}; {plugin.hint}"


def _lacking(plugin: KnownPlugin, device: int | str, listed: Sequence[Device]) -> str:
    """Say which devices a plugin lists instead of the one that is wanted."""
    if not listed:
        return f"{why_no_device(plugin)}, or use provider cpu"
    return f"got device {device}, need one that {described(plugin)} lists ({shown(listed)}); choose one"
