"""A bundle in ptexport's engine."""

from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import MANIFEST, WEIGHTS

if TYPE_CHECKING:
    from ptexport.toolkit.bench.systems.case import Case
    from ptexport.toolkit.bench.workers import Hardware


class BundleSystem:
    """A bundle, opened with `Engine.open`."""

    def __init__(self, case: "Case | None", folder: Path, hardware: "Hardware") -> None:
        self._engine = Engine.open(folder, provider=hardware.provider, threads=hardware.threads)
        graph = self._engine.manifest.graph
        self.setting = f"{graph.precision}, opset {graph.opset}"
        self.files = [folder / MANIFEST, *(folder / name for name in self._engine.manifest.files)]
        self.task_files = [path for path in self.files if path.name != WEIGHTS]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        logits: list[list[float]] = self._engine.logits(texts).tolist()
        return logits


SYSTEM = BundleSystem
