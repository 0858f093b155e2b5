"""Bundles that earlier versions of ptexport wrote open and predict what they predicted then."""

from pathlib import Path

import pytest

from ptexport.runtime import Engine
from ptexport.runtime.engine.golden import golden_texts

GOLDEN = Path(__file__).parents[2] / "golden"
TASKS = {"reviews": ["reviews"], "both": ["tone", "mood"]}


@pytest.mark.parametrize("bundle", TASKS)
@pytest.mark.parametrize("format", ["format-1", "format-2"])
def test_a_bundle_opens_and_predicts_the_stored_labels(format: str, bundle: str) -> None:
    with Engine.open(GOLDEN / format / bundle) as engine:
        assert engine.info.golden_max_abs_diff < 1e-4
        assert list(engine.tasks) == TASKS[bundle]
        for name, task in engine.tasks.items():
            rows = task.entry.golden
            stored = [max(row.logits, key=lambda label, row=row: row.logits[label]) for row in rows]
            predictions = engine.predict(golden_texts(rows), task=name)
            assert [prediction.label for prediction in predictions] == stored
            assert engine.logits(golden_texts(rows), task=name).tolist() == [
                pytest.approx([row.logits[label] for label in task.labels], abs=1e-4) for row in rows
            ]
