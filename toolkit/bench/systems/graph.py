"""A graph that a baseline exported, in ONNX Runtime with default settings; without torch."""

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.providers import choose_provider, load_onnxruntime
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.workers import Hardware

MODEL, INFO = "model.onnx", "graph.json"
PROMPT_IDS = "soft_token_ids"  # PaddleNLP's name


class GraphInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A description of an exported graph, stored beside it.

    Attributes:
        setting: precision and mode; see `System`.
        output: its only output: the model's output at all positions, the pooled one, or logits of the labels.
        prompt_ids: value of the input PROMPT_IDS; empty: there is no such input.
    """

    setting: str
    output: Literal["all", "pooled", "labels"]
    prompt_ids: list[int] = []

    def write(self, folder: Path) -> None:
        """Write it beside the graph."""
        (folder / INFO).write_bytes(msgspec.json.encode(self))


class GraphSystem:
    """A graph with the prompt in its weights."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        self._info = msgspec.json.decode((folder / INFO).read_bytes(), type=GraphInfo)
        self.setting = self._info.setting
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = hardware.threads
        provider = choose_provider(hardware.provider).name
        self._session: Any = onnxruntime.InferenceSession(folder / MODEL, options, providers=[provider])
        if self._session.get_providers()[0] != provider:
            raise BenchError(
                f"graph: runs on {self._session.get_providers()[0]}, need {provider}; leave this system out"
            )
        self._inputs, self._head = Inputs(case), LabelHead(case)
        self.files = sorted(path for path in folder.iterdir() if path.name.startswith(MODEL))
        self.task_files = self.files

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        given = self._inputs(texts)
        input_ids = given["input_ids"]
        if self._info.prompt_ids:
            given[PROMPT_IDS] = np.array(self._info.prompt_ids)
        (output,) = self._session.run(None, given)
        if self._info.output == "labels":
            logits: list[list[float]] = output.tolist()
            return logits
        pooled = self._head.pool(output, input_ids) if self._info.output == "all" else output
        return self._head.label_logits(pooled)


SYSTEM = GraphSystem
