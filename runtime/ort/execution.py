"""A bundle's model file -> its graph on the requested execution provider, or on the CPU under "auto"."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ptexport.runtime.bundle.folder import WEIGHTS
from ptexport.runtime.bundle.manifest import EngineEntry, FileEntry
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import CPU, TENSORRT, Provider, choose_provider
from ptexport.runtime.ort.tensorrt import Build, Engines
from ptexport.runtime.ort.tensorrt_rtx import TENSORRT_RTX, engine_for

_log = logging.getLogger("ptexport.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How to run a bundle: the arguments of `Engine.open`."""

    provider: str
    device: int
    threads: int | None
    cuda_graph: bool
    build: Build

    def __post_init__(self) -> None:
        """Check the values, which may come from another program or language.

        Raises:
            ProviderError: a value is out of range or of another type.
        """
        if self.build not in get_args(Build):
            raise ProviderError(f"build: got {self.build!r}, need one of {', '.join(get_args(Build))}; choose one")
        for name, value, least in (("device", self.device, 0), ("threads", self.threads, 1)):
            if (value is not None or name == "device") and (not isinstance(value, int) or value < least):
                raise ProviderError(f"{name}: got {value!r}, need a whole number of at least {least}; choose one")

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
        if self.provider in ("tensorrt", TENSORRT) and file.arrays:
            raise ProviderError(
                f"{model}: got overridable initializers, TensorRT needs constants; export it with --target tensorrt"
            )
        if self.provider in ("tensorrt-rtx", TENSORRT_RTX):
            model = engine_for(model, engine, self.device)
        provider = choose_provider(self.provider, device=self.device, cuda_graph=self.cuda_graph)
        buckets = Buckets.up_to(max_length)
        try:
            return self._on(provider, model, file, files, buckets)
        except ProviderError as e:
            falls_back = self.provider == "auto" and provider.name != CPU and not self.device and not self.cuda_graph
            if not falls_back:
                raise
            _log.warning("provider auto: uses the CPU, since %s", e)
            return self._on(Provider(degraded=str(e)), model, file, files, buckets)

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
        return Graph.open_shared(
            model, file, files[WEIGHTS].sha256, provider=provider, threads=self.threads, buckets=buckets
        )
