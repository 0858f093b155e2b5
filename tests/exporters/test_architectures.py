"""Every architecture that the docs list, as a tiny random model: the graph against the oracle, and controls.

No control costs a trace: it is the oracle, the run or the mask that is made wrong, never the graph.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from baked import bake_run, check_parity
from tiny import Quiet, sample, train_tiny, worst
from torch import Tensor

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.parity.compare import compare, fail_on_difference
from ptexport.exporters.parity.reference import ReferenceModel
from ptexport.runtime.bundle.measured import Parity
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

CAUSAL = ("llama", "gpt2", "qwen2", "qwen3")
MASKED = ("bert", "roberta", "xlm-roberta", "albert", "distilbert", "electra", "modernbert")
LEARNED_POSITIONS = {"gpt2", *MASKED} - {"modernbert"}
NEWEST_OPSET = {"qwen3", "modernbert"}

# From nothing to more than any of the models takes; the longest becomes a row of as many tokens as the model does take.
TEXTS = [f"the film was {'very ' * n}bright" for n in (0, 3, 12, 30, 200)]


@dataclasses.dataclass(frozen=True)
class Case:
    """Label words on one architecture, exported at opset 18."""

    name: str
    run: Run
    backbone: Backbone
    folder: Path

    def parity(self, *, backbone: Backbone | None = None, folder: Path | None = None) -> Parity:
        """Compare, with another model's answers or another graph where given."""
        return check_parity(self.run, backbone or self.backbone, folder or self.folder)


@pytest.fixture(scope="module")
def test_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.csv"
    path.write_text("text,label\n" + "".join(f"{text},positive\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=sample([*CAUSAL, *MASKED], "llama", "gpt2", "roberta", "albert", "modernbert"))
def case(
    model_of: Callable[[str], Path],
    rows_file: Path,
    test_rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Case:
    template = "[P*2] Review: {text} It was [P*2]" if request.param in CAUSAL else "[P*2] {text} [P] it was [MASK]"
    parent = tmp_path_factory.mktemp("case")
    folder = train_tiny(
        model_of(request.param), rows_file, template, parent / "run", test=str(test_rows), max_length=None
    )
    run = Run.read(folder)
    backbone = load_backbone_of(run.config, Path())
    (parent / "graph").mkdir()
    bake_run(run, backbone, parent / "graph")
    return Case(name=request.param, run=run, backbone=backbone, folder=parent / "graph")


def seen(parity: Parity) -> bool:
    """Whether the comparison refuses, by far more than rounding."""
    with pytest.raises(ExportError, match="no bundle was written"):
        fail_on_difference("task", parity)
    return min(parity.alone.max_abs_diff, parity.padded_right.max_abs_diff, parity.padded_left.max_abs_diff) > 1e-2


def test_label_words(case: Case) -> None:
    assert case.run.config.pooling == ("last" if case.name in CAUSAL else "mask")
    parity = case.parity()
    fail_on_difference("task", parity)
    assert worst(parity) < 2e-5


@pytest.mark.parametrize("name", sample([*CAUSAL, *MASKED], "gpt2", "bert"))
def test_a_linear_head(
    name: str, model_of: Callable[[str], Path], rows_file: Path, test_rows: Path, tmp_path: Path
) -> None:
    changes = {"labels": "positive,negative", "head": "linear", "test": str(test_rows), "max_length": None}
    run_folder = train_tiny(model_of(name), rows_file, "[P] {text} [P*2]", tmp_path / "run", **changes)
    opset = 23 if name in NEWEST_OPSET else 18
    manifest = export(ExportConfig(runs=(run_folder,), out=tmp_path / "bundle", opset=opset), Quiet())
    assert (manifest.graph.pooling, manifest.graph.opset) == ("last" if name in CAUSAL else "mean", opset)
    assert worst(manifest.task.parity) < 2e-5


def test_a_row_has_as_many_tokens_as_there_are_positions(case: Case) -> None:
    n, width = case.run.config.max_length, case.backbone.facts.embedding_width
    assert n == {"modernbert": 96, **dict.fromkeys(CAUSAL, 128)}.get(case.name, 64)
    assert len(encoder_of(case).encode([TEXTS[-1]])[0]) == n - case.run.config.n_folded
    if case.name in LEARNED_POSITIONS:
        with pytest.raises((IndexError, RuntimeError)):  # by architecture
            case.backbone.model(inputs_embeds=torch.zeros(1, n + 1, width))


def test_each_weight_is_there_once_and_under_its_name(case: Case) -> None:
    """ALBERT's layers share theirs; what is transposed for a product is not there untransposed too."""
    parameters = dict(case.backbone.classifier(case.run.config.pooling).named_parameters())
    products = [node for node in ir.load(case.folder / "model.onnx").graph if node.op_type in ("MatMul", "Gemm")]
    names = {str(node.inputs[1].name) for node in products if node.inputs[1] and node.inputs[1].const_value is not None}
    assert {name.removesuffix(".T") for name in names} <= {*parameters, "label_weights"}
    size_bytes = 4 * sum(parameter.numel() for parameter in parameters.values())
    assert (case.folder / "model.onnx.data").stat().st_size < size_bytes + 20_000


def test_control_a_zeroed_row(case: Case, tmp_path: Path) -> None:
    rows = case.run.arrays.prompt_embeddings.copy()
    rows[2] = 0
    zeroed = dataclasses.replace(case.run, arrays=dataclasses.replace(case.run.arrays, prompt_embeddings=rows))
    bake_run(zeroed, case.backbone, tmp_path)
    assert seen(case.parity(folder=tmp_path))


class CountsOneTwice:
    """A model that gives its fourth token the position of its third: all that follow are off by one."""

    def __init__(self, backbone: Backbone) -> None:
        self.model = backbone.model
        self.forward = backbone.model.forward
        self.first_position = backbone.classifier("last").first_position
        self.get_input_embeddings = backbone.model.get_input_embeddings

    def __call__(self, *, inputs_embeds: Tensor, **extra: Tensor) -> Any:
        counted = torch.arange(inputs_embeds.shape[1])[None]
        positions = counted - (counted > 2).to(torch.int64) + self.first_position
        return self.model(inputs_embeds=inputs_embeds, position_ids=positions, **extra)


def test_control_positions_off_by_one(case: Case) -> None:
    wrong: Any = CountsOneTwice(case.backbone)
    assert seen(case.parity(backbone=dataclasses.replace(case.backbone, model=wrong)))


def test_control_a_dropped_mask(case: Case) -> None:
    graph, oracle, encoder = (
        Graph.open(case.folder / "model.onnx"),
        ReferenceModel(case.run, case.backbone),
        encoder_of(case),
    )
    texts = [TEXTS[0], TEXTS[3]]
    expected = np.concatenate([oracle.logits(oracle.encode([text])) for text in texts])
    for side in ("left", "right"):
        ids = encoder.pad(encoder.encode(texts), side=side)
        assert compare(graph.run(ids), expected).max_abs_diff < 2e-5
        ids["attention_mask"][:] = 1
        assert compare(graph.run(ids), expected).max_abs_diff > 1e-2


@pytest.mark.parametrize("case", ["modernbert"], indirect=True)
def test_control_a_window_that_is_not_there(case: Case) -> None:
    """Rows are longer than what a layer sees of them: another window gives other answers."""
    wide = load_backbone_of(case.run.config, Path())
    wide.model.config.local_attention = 2 * case.run.config.max_length
    assert seen(case.parity(backbone=wide))


def encoder_of(case: Case) -> TextEncoder:
    return TextEncoder.from_json((case.folder / "tokenizer.json").read_text(encoding="utf-8"), fields=["text"])
