"""Plugins that are installed run a bundle for real: `make plugins` installs two, and runs this."""

from pathlib import Path

import numpy as np
import pytest

from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.plugins import installed_plugins
from ptexport.runtime.ort.providers import CPU

pytestmark = pytest.mark.plugins
NAMES = [plugin.name for plugin in installed_plugins()]
TEXTS = ["the film was very bright", "a slow and dull story of a city", "the", "a film"]


def test_there_are_plugins() -> None:
    assert NAMES, "pip install onnxruntime-ep-openvino, or another, into this environment"


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_logits_of_the_cpu_in_any_batch(name: str, bundle: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(bundle)
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
def test_a_device_that_it_does_not_list_is_refused(name: str, llama_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=rf"provider {name}: got device 99, need one that .* lists"):
        Engine.open(llama_bundle, provider=name, device=99)
