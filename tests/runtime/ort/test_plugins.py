"""Plugins are found, registered once, and run what was asked for, or opening raises.

CI has no plugin: a played one runs on ONNX Runtime's CPU provider, under a name of its own. test_installed_plugins.py
runs those that are installed.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from commands import ptexport

from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BundleError, ProviderError
from ptexport.runtime.ort import graph, plugins, providers
from ptexport.runtime.ort.io_binding import Buffers
from ptexport.runtime.ort.known_plugins import KNOWN_PLUGINS, KnownPlugin
from ptexport.runtime.ort.plugins import choose_plugin, find_plugin, installed_plugins, list_devices
from ptexport.runtime.ort.providers import CPU
from ptexport.toolkit.evaluation.doctor import examine

NAME, EP = "played-one", "PlayedOneExecutionProvider"


def device_of(kind: str, vendor: str = "Acme", name: str = EP, **metadata: str) -> SimpleNamespace:
    """Make what ONNX Runtime lists for a device."""
    hardware = SimpleNamespace(type=SimpleNamespace(name=kind), vendor=vendor, metadata={"Description": f"{kind} 9000"})
    return SimpleNamespace(ep_name=name, ep_metadata=metadata, device=hardware)


@dataclass
class Played:
    """An onnxruntime that has a plugin, whose nodes it runs on its CPU provider.

    Attributes:
        devices: what it lists once the plugin is registered.
        registered: names and libraries, in the order of their registration.
        opened: devices and options of each session on the plugin.
        elsewhere: operators that the plugin does not take.
        refuses: option that the plugin refuses.
    """

    devices: list[SimpleNamespace] = field(
        default_factory=lambda: [device_of("CPU"), device_of("GPU"), device_of("GPU")]
    )
    registered: list[tuple[str, str]] = field(default_factory=list)
    opened: list[tuple[Any, dict[str, str]]] = field(default_factory=list)
    elsewhere: tuple[str, ...] = ("Shape",)
    refuses: str = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[SimpleNamespace]:
        return [device_of("CPU", "Maker", CPU), *(self.devices if self.registered else [])]

    def SessionOptions(self) -> Any:  # noqa: N802 - ONNX Runtime's name
        played = self

        class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
            def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
                if played.refuses in options:
                    raise ValueError(f"unknown option {played.refuses}")
                played.opened.append((*devices, options))

        return Options()

    def InferenceSession(self, model: str, options: Any, **named: Any) -> Any:  # noqa: N802
        session = onnxruntime.InferenceSession(model, options, providers=[CPU])
        return session if "providers" in named else PlayedSession(session, self.elsewhere)


class PlayedSession:
    """A session that says it runs on the plugin, except for some operators."""

    def __init__(self, session: Any, elsewhere: tuple[str, ...]) -> None:
        self._session, self._elsewhere = session, elsewhere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [EP, CPU]

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(ep_name=CPU if node.op_type in self._elsewhere else EP, get_nodes=lambda node=node: [node])
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a plugin's module: the folder that holds it."""
    (tmp_path / "onnxruntime_ep_played_one.py").write_text(
        f"def get_ep_name():\n    return {EP!r}\n\ndef get_library_path():\n    return {str(tmp_path / 'lib.so')!r}\n"
    )
    (tmp_path / "lib.so").write_text("no library")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setattr(plugins, "_registered", set())
    plugins._ep_name.cache_clear()
    yield tmp_path
    sys.modules.pop("onnxruntime_ep_played_one", None)
    plugins._ep_name.cache_clear()


@pytest.fixture
def played(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """Play ONNX Runtime with the plugin."""
    play = Played()
    for module in (plugins, providers, graph):
        monkeypatch.setattr(module, "load_onnxruntime", lambda: play)
    return play


def test_a_plugin_runs_a_bundle(played: Played, llama_bundle: Path) -> None:
    expected = Engine.open(llama_bundle, provider="cpu", threads=1).logits(["the film", "a"])
    engine = Engine.open(llama_bundle, provider=NAME, threads=1, provider_options={"speed": "11"})
    info = engine.info
    assert (info.provider, info.device, info.hardware, info.degraded) == (EP, 0, "CPU, CPU 9000", None)
    assert info.placement is not None
    assert info.placement[EP] > info.placement[CPU] > 0
    assert played.opened == [(played.devices[0], {"speed": "11"})]
    assert np.abs(engine.logits(["the film", "a"]) - expected).max() < 1e-4


def test_it_is_registered_once_and_found_by_both_names(played: Played, installed: Path, llama_bundle: Path) -> None:
    keep = [Engine.open(llama_bundle, provider=name, threads=1) for name in (NAME, EP, NAME)]
    assert played.registered == [(EP, str(installed / "lib.so"))]
    assert len({id(engine._state.get().graph.session) for engine in keep}) == 1, "they share a session"
    assert [plugin.name for plugin in installed_plugins() if plugin.name == NAME] == [NAME]
    assert find_plugin("played-two") is None


@pytest.mark.parametrize(("asked", "got"), [("cpu", 0), ("gpu", 1), (2, 2), (0, 0)])
def test_a_device_is_chosen_by_kind_or_number(asked: int | str, got: int, played: Played) -> None:
    plugin = find_plugin(NAME)
    assert plugin is not None
    provider = choose_plugin(plugin, asked, 1, {})
    assert (provider.device, provider.ep_device) == (got, played.devices[got])


def test_threads_and_options_of_ours_come_after_those_of_the_caller(played: Played) -> None:
    plugin = KnownPlugin(
        name=NAME, module="onnxruntime_ep_played_one", wheel="w", options=(("hint", "f32"),), threads="threads"
    )
    assert dict(choose_plugin(plugin, "cpu", 3, {}).options) == {"hint": "f32", "threads": "3"}
    assert dict(choose_plugin(plugin, "gpu", 3, {"hint": "bf16"}).options) == {"hint": "bf16"}
    in_bf16 = replace(plugin, precision="hint")
    tolerances = [choose_plugin(in_bf16, "gpu", 3, {"hint": hint}).tolerance for hint in ("f32", "bf16")]
    assert tolerances == [0.05, 0.5]
    played.devices = [device_of("GPU", ov_device="GPU.1")]
    as_json = replace(plugin, json_option="load_config")
    (option,) = choose_plugin(as_json, "gpu", 3, {"a": "b"}).options
    assert (option[0], json.loads(option[1])) == ("load_config", {"GPU.1": {"hint": "f32", "a": "b"}})


def test_graphs_that_a_plugin_does_not_take_are_refused_by_their_target(
    played: Played, llama_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = KnownPlugin(name=NAME, module="onnxruntime_ep_played_one", wheel="w", target="openvino")
    monkeypatch.setattr(plugins, "_unknown", lambda module: picky)
    with pytest.raises(ProviderError, match=r"provider played-one needs constants; export it with --target openvino"):
        Engine.open(llama_bundle, provider=NAME, threads=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "npu"}, r"played-one: got device npu, need one that .* lists \(0: CPU, CPU 9000; 1: GPU, .*\)"),
        ({"device": 3}, r"got device 3, need one that"),
        ({"cuda_graph": True}, r"played-one: got cuda_graph, which is for cuda; leave it out"),
        ({"provider_options": {"turbo": "1"}}, r"cannot run this graph \(unknown option turbo\); use provider cpu"),
        ({"provider_options": {"turbo": 1}}, r"got 'turbo': 1, need strings"),
        ({"device": "tpu"}, r"device: got 'tpu', need cpu, gpu, npu, or a number from 0; choose one"),
    ],
)
def test_what_it_does_not_do_is_refused(
    options: dict[str, Any], message: str, played: Played, llama_bundle: Path
) -> None:
    played.refuses = "turbo"
    with pytest.raises(ProviderError, match=message):
        Engine.open(llama_bundle, provider=NAME, threads=1, **options)


def test_no_device_is_an_error_that_says_what_is_there(played: Played, llama_bundle: Path) -> None:
    played.devices = []
    with pytest.raises(ProviderError, match=r"onnxruntime_ep_played_one lists no device .*; install the driver"):
        Engine.open(llama_bundle, provider=NAME, threads=1)
    (check,) = (check for check in examine() if check.name == f"plugin {NAME}")
    assert check.missing is not None
    assert "lists no device" in check.missing


def test_doctor_lists_the_devices(played: Played) -> None:
    (check,) = (check for check in examine() if check.name == f"plugin {NAME}")
    assert (check.missing, "1: GPU, GPU 9000; 2: GPU" in check.found) == (None, True)


def test_products_on_the_cpu_are_refused(played: Played, llama_bundle: Path) -> None:
    played.elsewhere = ("MatMul",)
    with pytest.raises(ProviderError, match=rf"{EP}: does not run the whole graph: \d+ MatMul on CPUExecution"):
        Engine.open(llama_bundle, provider=NAME, threads=1)


def test_a_row_that_depends_on_its_neighbours_is_refused(
    played: Played, llama_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Buffers.run

    def shifted(self: Buffers, ids: Any) -> Any:
        """What rows of a batch of one get; in batches the golden rows have the expected logits."""
        return run(self, ids) + (1 if len(ids["input_ids"]) == 1 else 0)

    monkeypatch.setattr(Buffers, "run", shifted)
    with pytest.raises(BundleError, match=r"differs by 1 between a batch and a row alone, need at most 0\.05"):
        Engine.open(llama_bundle, provider=NAME, threads=1)


def test_wrong_logits_are_refused_within_the_plugins_own_tolerance(
    played: Played, llama_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Buffers.run
    monkeypatch.setattr(Buffers, "run", lambda self, ids: run(self, ids) + 0.03)
    Engine.open(llama_bundle, provider=NAME, threads=1)
    exact = KnownPlugin(name=NAME, module="onnxruntime_ep_played_one", wheel="w", tolerance=0.01)
    monkeypatch.setattr(plugins, "_unknown", lambda module: exact)
    with pytest.raises(BundleError, match=r"golden rows differs by 0\.03, need at most 0\.01"):
        Engine.open(llama_bundle, provider=NAME, threads=1)


def test_a_library_that_onnxruntime_cannot_load_is_named(installed: Path, llama_bundle: Path) -> None:
    """With the real ONNX Runtime."""
    message = rf"onnxruntime_ep_played_one cannot be loaded by onnxruntime {onnxruntime.__version__} \(.*lib\.so"
    with pytest.raises(ProviderError, match=message):
        Engine.open(llama_bundle, provider=NAME, threads=1)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def get_ep_name(): raise KeyError('driver')", "'driver'"),
        ("def get_ep_name(): return 'X'\ndef get_library_path(): raise RuntimeError('no lib')", "no lib"),
    ],
)
def test_a_module_that_fails_is_named(code: str, why: str, installed: Path, llama_bundle: Path) -> None:
    (installed / "onnxruntime_ep_played_one.py").write_text(code + "\n")
    with pytest.raises(ProviderError, match=rf"played_one cannot be loaded \({why}\); install it again"):
        Engine.open(llama_bundle, provider=NAME, threads=1)


def test_onnxruntimes_without_plugins_are_named(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__version__="1.18.0", get_available_providers=lambda: [CPU])
    monkeypatch.setattr(plugins, "load_onnxruntime", lambda: old)
    plugin = find_plugin(NAME)
    assert plugin is not None
    with pytest.raises(
        ProviderError, match=r"played-one: onnxruntime 1\.18\.0 takes no plugins, need 1\.23; install it"
    ):
        list_devices(plugin)


# tensorrt-rtx asks for an engine first: test_tensorrt_rtx.py.
MISSING = [name for name, its in KNOWN_PLUGINS.items() if its not in installed_plugins() and name != "tensorrt-rtx"]


@pytest.mark.parametrize("name", MISSING)
def test_a_plugin_that_is_not_installed_is_named(name: str, llama_bundle: Path) -> None:
    with pytest.raises(
        ProviderError, match=rf"provider {name}: is not installed; pip install {KNOWN_PLUGINS[name].wheel}"
    ):
        Engine.open(llama_bundle, provider=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"provider": "CUDAExecutionProvider", "device": "npu"},
            "provider CUDAExecutionProvider: got device npu, need the n",
        ),
        ({"provider": "cpu", "device": "gpu"}, "provider cpu: got device gpu, need the CPU; leave it out"),
        ({"provider": "auto", "device": "npu"}, "provider auto: got device npu"),
        (
            {"provider": "cpu", "provider_options": {"a": "b"}},
            "provider cpu: got the option a, need none; leave it out",
        ),
        ({"provider": "auto", "provider_options": {"a": "b"}}, "provider auto: got the option a, need none"),
    ],
)
def test_built_in_providers_refuse_what_is_for_plugins(
    options: dict[str, Any], message: str, llama_bundle: Path
) -> None:
    with pytest.raises(ProviderError, match=message):
        Engine.open(llama_bundle, **options)


def test_the_command_line_takes_devices_and_options(played: Played, llama_bundle: Path) -> None:
    asked = ["--provider", NAME, "--device", "gpu", "--provider-option", "a=b=c", "--provider-option", "d="]
    done = ptexport("predict", str(llama_bundle), "the film", "--threads", "1", *asked)
    assert done.returncode == 0, done.stderr
    assert played.opened == [(played.devices[1], {"a": "b=c", "d": ""})]
    for wrong in (["--provider-option", "a"], ["--provider-option", "=b"], ["--device", "tpu"], ["--device", "-1"]):
        done = ptexport("predict", str(llama_bundle), "the film", "--provider", NAME, *wrong)
        assert (done.returncode, wrong[1] in done.stderr) == (2, True)
