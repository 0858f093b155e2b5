"""A bundle in ptexport's own engine."""

from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.runtime import Engine
from ptexport.runtime.bundle import WEIGHTS

if TYPE_CHECKING:
    from ptexport.toolkit.bench.case import Case


class System:
    """A bundle, opened as users do."""

    def __init__(self, case: "Case | None", folder: Path, threads: int) -> None:
        self._engine = Engine.open(folder, provider="cpu", threads=threads)
        graph = self._engine.manifest.graph
        self.setting = f"{graph.precision}, opset {graph.opset}"
        self.files = [folder / name for name in self._engine.manifest.files]
        self.task_files = [path for path in self.files if path.name != WEIGHTS]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        rows: list[list[float]] = self._engine.logits(texts).tolist()
        return rows
