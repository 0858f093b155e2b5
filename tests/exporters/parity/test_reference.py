"""What a graph is compared with: rows of equal length together are what each is alone."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Quiet

from ptexport.exporters.parity.reference import ReferenceModel, expected_logits
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

TEXTS = ["the film was bright", "dull", "slow", "a slow story was dull", "the film was slow", "", "bright", "東京"]


@pytest.mark.parametrize("run_folder", ["llama_run", "bert_run"])
def test_rows_of_equal_length_are_computed_together(
    run_folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(run_folder)
    run = Run.read(folder)
    backbone = load_backbone_of(run.config, folder)
    alone = ReferenceModel(run, backbone)
    expected = np.concatenate([alone.logits(alone.encode([text])) for text in TEXTS])
    shapes: list[tuple[int, ...]] = []
    kept: list[Any] = []
    forward = backbone.model.forward

    def noting(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))
        kept.append(inputs.get("logits_to_keep"))
        assert "attention_mask" not in inputs, "nothing is padded"
        return forward(**inputs)

    noting.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(backbone.model, "forward", noting)
    got = expected_logits(run, backbone, TEXTS, Quiet())
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got - got[::-1]).max() > 1e-3, "the control: another row has other logits"
    lengths = [len(row) for row in alone.encode(TEXTS)]
    assert sorted(shapes) == sorted((lengths.count(length), length) for length in set(lengths))
    assert set(kept) == {1 if run.config.pooling == "last" else None}, "only what is read"
