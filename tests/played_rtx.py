"""A played TensorRT RTX: takes what the real builder takes, and notes it; its engines are a few bytes."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class PlayedRtx:
    """Stands for the module `tensorrt_rtx`.

    Attributes:
        builds: model bytes, path, capabilities and profile of each build.
        refused: operator that the parser refuses; empty: none.
        fails: whether no engine comes out of a build.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.builds: list[dict[str, Any]] = []
        self.refused = ""
        self.fails = False
        module = ModuleType("tensorrt_rtx")
        severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)
        content = {
            "__version__": "1.7.1.116",
            "ILogger": type("ILogger", (), {"Severity": severity}),
            "ComputeCapability": SimpleNamespace(SM86="SM86", SM89="SM89", SM120="SM120"),
            "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
            "Builder": lambda log: _Builder(self, log),
            "OnnxParser": lambda network, log: _Parser(self, network),
        }
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)


class _Parser:
    def __init__(self, played: PlayedRtx, network: SimpleNamespace) -> None:
        self._played = played
        self._network = network
        self.num_errors = int(bool(played.refused))

    def parse(self, model: bytes, path: str) -> bool:
        self._network.model, self._network.path = model, path
        return not self.num_errors

    def get_error(self, number: int) -> SimpleNamespace:
        said = {"node_operator": self._played.refused, "node_name": "node_7", "desc": "no importer"}
        return SimpleNamespace(**{name: lambda value=value: value for name, value in said.items()})


class _Builder:
    def __init__(self, played: PlayedRtx, log: Any) -> None:
        self._played = played
        self._log = log

    def create_network(self, flags: int) -> SimpleNamespace:
        return SimpleNamespace(strongly_typed=bool(flags & 2), num_layers=7)

    def create_builder_config(self) -> SimpleNamespace:
        config = SimpleNamespace(capabilities={}, profiles=[])
        config.set_compute_capability = lambda name, number: config.capabilities.update({number: name})
        config.add_optimization_profile = config.profiles.append
        return config

    def create_optimization_profile(self) -> Any:
        profile = SimpleNamespace(sizes={})
        profile.set_shape = lambda name, *sizes: profile.sizes.update({name: sizes})
        return profile

    def build_serialized_network(self, network: SimpleNamespace, config: SimpleNamespace) -> bytes | None:
        assert network.strongly_typed
        assert config.num_compute_capabilities == len(config.capabilities)
        if self._played.fails:
            self._log.log(1, "no room for\n a tensor")
            return None
        (profile,) = config.profiles
        made = {"model": network.model, "path": network.path, "profile": profile.sizes}
        self._played.builds.append(
            {**made, "capabilities": [config.capabilities[i] for i in sorted(config.capabilities)]}
        )
        return f"engine {len(self._played.builds)}".encode()
