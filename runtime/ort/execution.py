"""A bundle's model file -> its graph on the requested execution provider, or on the CPU under "auto"."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ptexport.runtime.bundle.engine_model import TENSORRT_RTX
from ptexport.runtime.bundle.folder import ENGINE, ENGINE_MODEL, WEIGHTS
from ptexport.runtime.bundle.manifest import EngineEntry, FileEntry
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.known_plugins import DEVICE_KINDS, KnownPlugin
from ptexport.runtime.ort.plugins import choose_plugin, find_plugin
from ptexport.runtime.ort.providers import CPU, CUDA, TENSORRT, Provider, choose_provider, full_name
from ptexport.runtime.ort.tensorrt import Build, Engines
from ptexport.runtime.ort.tensorrt_rtx import check_room, engine_for

_KIND_OF_BUILT_IN = {CPU: "cpu", CUDA: "gpu", TENSORRT: "gpu"}
_log = logging.getLogger("ptexport.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How to run a bundle: the arguments of `Engine.open`."""

    provider: str
    device: int | str
    threads: int | None
    cuda_graph: bool
    build: Build
    provider_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values, which may come from another program or language.

        Raises:
            ProviderError: a value is out of range or of another type.
        """
        if self.build not in get_args(Build):
            raise ProviderError(f"build: got {self.build!r}, need one of {', '.join(get_args(Build))}; choose one")
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise ProviderError(f"threads: got {self.threads!r}, need a whole number of at least 1; choose one")
        if self.device not in DEVICE_KINDS and (not isinstance(self.device, int) or self.device < 0):
            kinds = ", ".join(DEVICE_KINDS)
            raise ProviderError(f"device: got {self.device!r}, need {kinds}, or a number from 0; choose one")
        for key, value in self.provider_options.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ProviderError(f"provider_options: got {key!r}: {value!r}, need strings; write both as strings")

    def open(
        self, model: Path, files: Mapping[str, FileEntry], max_length: int, engine: EngineEntry | None = None
    ) -> Graph:
        """Load a bundle's graph on the requested provider.

        "auto" uses the CPU where CUDA cannot load the graph, unless a device or a CUDA graph was requested.

        Args:
            model: the verified file, with its verified weights beside it.
            files: files of the bundle.
            max_length: longest row, in ids.
            engine: the bundle's TensorRT RTX engine.

        Raises:
            BundleError: the file is not an ONNX model.
            ProviderError: the provider does not run the graph.
            MissingExtraError: ONNX Runtime is not installed.
        """
        file = OnnxFile.parse(model.read_bytes(), str(model))
        if self.provider in ("tensorrt-rtx", TENSORRT_RTX):
            opened = engine_for(model, engine, self.device if isinstance(self.device, int) else 0)
            if engine is not None:
                check_room(engine, file.arrays, max_length, str(model.parent))
            model = opened
        plugin = find_plugin(self.provider)
        chosen = None if plugin is None else self._choose_device(plugin)
        target = "tensorrt" if self.provider in ("tensorrt", TENSORRT) else plugin and plugin.target
        if target and file.arrays:
            raise ProviderError(
                f"{model}: got overridable initializers, provider {self.provider} needs constants; export it with "
                f"--target {target}"
            )
        provider = chosen or self._choose_built_in()
        buckets = Buckets.up_to(max_length)
        try:
            return self._on(provider, model, file, files, buckets)
        except ProviderError as e:
            falls_back = self.provider == "auto" and provider.name != CPU and not self.device and not self.cuda_graph
            if not falls_back:
                raise
            _log.warning("provider auto: uses the CPU, since %s", e)
            return self._on(Provider(degraded=str(e)), model, file, files, buckets)

    def _choose_device(self, plugin: KnownPlugin) -> Provider:
        if self.cuda_graph:
            raise ProviderError(f"provider {plugin.name}: got cuda_graph, which is for cuda; leave it out")
        return choose_plugin(plugin, self.device, self.threads or available_cpus(), self.provider_options)

    def _choose_built_in(self) -> Provider:
        kind = _KIND_OF_BUILT_IN.get(full_name(self.provider))
        if isinstance(self.device, str) and self.device != kind:
            need = "the CPU" if kind == "cpu" else "the number of a GPU"
            raise ProviderError(
                f"provider {self.provider}: got device {self.device}, need {need}; leave it out, or name a plugin"
            )
        return choose_provider(
            self.provider,
            device=self.device if isinstance(self.device, int) else 0,
            cuda_graph=self.cuda_graph,
            options=self.provider_options,
        )

    def _on(
        self, provider: Provider, model: Path, file: OnnxFile, files: Mapping[str, FileEntry], buckets: Buckets
    ) -> Graph:
        if provider.name == TENSORRT:
            engines = Engines.of(provider, files, file.inputs, buckets)
            return engines.open(
                model,
                self.build,
                lambda at, on: Graph.open(at, provider=on, threads=self.threads, buckets=buckets),
            )
        if provider.cuda_graph:  # a recorded graph contains the arrays of one task
            return Graph.open(model, provider=provider, threads=self.threads, buckets=buckets)
        holds_weights = ENGINE if model.name == ENGINE_MODEL else WEIGHTS
        return Graph.open_shared(
            model, file, files[holds_weights].sha256, provider=provider, threads=self.threads, buckets=buckets
        )
