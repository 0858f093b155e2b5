"""A graph that a rival exported, in ONNX Runtime as it comes; without torch."""

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.providers import choose_provider, load_onnxruntime
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.workers import Hardware

MODEL, EXPORTED = "model.onnx", "exported.json"
PROMPT_IDS = "soft_token_ids"  # as PaddleNLP names them


class Exported(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rival says of its graph.

    Attributes:
        setting: see System.
        gives: what its only output is: the model's of all positions, at the one that is read, or logits of the labels.
        prompt_ids: that it takes as PROMPT_IDS; none: there is no such input.
    """

    setting: str
    gives: Literal["all", "picked", "labels"]
    prompt_ids: list[int] = []

    def write(self, folder: Path) -> None:
        """Write it beside the graph."""
        (folder / EXPORTED).write_bytes(msgspec.json.encode(self))


class System:
    """The graph, its prompt among its weights."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        self._exported = msgspec.json.decode((folder / EXPORTED).read_bytes(), type=Exported)
        self.setting = self._exported.setting
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = hardware.threads
        provider = choose_provider(hardware.provider).name
        self._session: Any = onnxruntime.InferenceSession(folder / MODEL, options, providers=[provider])
        if self._session.get_providers()[0] != provider:
            raise BenchError(f"{self._session.get_providers()[0]} took the graph, not {provider}; leave it out")
        self._inputs, self._reader = Inputs(case), Reader(case)
        self.files = sorted(path for path in folder.iterdir() if path.name.startswith(MODEL))
        self.task_files = self.files

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = self._inputs(texts)
        input_ids = given["input_ids"]
        if self._exported.prompt_ids:
            given[PROMPT_IDS] = np.array(self._exported.prompt_ids)
        (output,) = self._session.run(None, given)
        if self._exported.gives == "labels":
            logits: list[list[float]] = output.tolist()
            return logits
        return self._reader.of_labels(self._reader.pick(output, input_ids) if self._exported.gives == "all" else output)
