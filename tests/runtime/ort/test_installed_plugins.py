"""Plugins that are installed run a bundle for real: `make plugins` installs two, and runs this."""

from pathlib import Path

import numpy as np
import pytest
from tiny import Quiet

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.known_plugins import KNOWN_PLUGINS
from ptexport.runtime.ort.plugins import choose_plugin, installed_plugins
from ptexport.runtime.ort.providers import CPU

pytestmark = pytest.mark.plugins
NAMES = [plugin.name for plugin in installed_plugins()]
TEXTS = ["the film was very bright", "a slow and dull story of a city", "the", "a film"]


def test_there_are_plugins() -> None:
    assert NAMES, "pip install onnxruntime-ep-openvino, or another, into this environment"


@pytest.mark.parametrize("run", ["llama_run", "bert_run"])
@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_logits_of_the_cpu_in_any_batch(
    name: str, run: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """For the target of the plugin, which keeps all products on it."""
    folder = tmp_path / "bundle"
    target = KNOWN_PLUGINS[name].target or "cpu"
    export(ExportConfig(runs=(request.getfixturevalue(run),), out=folder, target=target), Quiet())
    expected = Engine.open(folder, provider="cpu").logits(TEXTS)
    engine = Engine.open(folder, provider=name)
    together, alone = engine.logits(TEXTS), np.concatenate([engine.logits([text]) for text in TEXTS])
    assert np.ptp(expected) > 0.1
    assert np.abs(together - expected).max() < 1e-3
    assert np.abs(together - alone).max() < 1e-3
    assert np.abs(together - expected[::-1]).max() > 1e-2, "the control"
    info = engine.info
    assert info.provider != CPU
    assert info.placement is not None
    assert info.placement[info.provider] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_it_does_not_list_is_refused(name: str) -> None:
    with pytest.raises(ProviderError, match=rf"provider {name}: got device 99, need one that .* lists"):
        choose_plugin(KNOWN_PLUGINS[name], 99, 1, {})


@pytest.mark.skipif("openvino" not in NAMES, reason="is about OpenVINO's plugin")
def test_openvino_refuses_other_targets_and_unknown_properties(
    llama_bundle: Path, llama_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProviderError, match="needs constants; export it with --target openvino"):
        Engine.open(llama_bundle, provider="openvino")
    folder = tmp_path / "bundle"
    export(ExportConfig(runs=(llama_run,), out=folder, target="openvino"), Quiet())
    with pytest.raises(ProviderError, match="Unsupported property TURBO by CPU plugin"):
        Engine.open(folder, provider="openvino", provider_options={"TURBO": "1"})
