"""Temperature and threshold, against data made so that the answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LABELS, Quiet, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime import Engine
from ptexport.runtime.rows.read import read_rows
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.training.calibration import fit_temperature, fit_threshold


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 4, generator=generator)
    targets = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(temperature * honest, targets) == pytest.approx(temperature, rel=0.05)


def test_a_few_rows_that_are_all_right_do_not_make_it_certain() -> None:
    """Nor uncertain: without the prior, ten such rows would give the lowest temperature there is."""
    always_right = torch.tensor([[2.0, 0.0]] * 10)
    targets = torch.zeros(10, dtype=torch.int64)
    assert 0.6 < fit_temperature(always_right, targets) < 1
    assert fit_temperature(always_right, 1 - targets) > 1.5


def export_to(run: Path, bundle: Path) -> Path:
    export(ExportConfig(runs=(run,), out=bundle), Quiet())
    return bundle


def logits(*probabilities: float) -> torch.Tensor:
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


@pytest.mark.parametrize(
    ("right", "accuracy", "threshold"),
    [
        ([1, 1, 0, 1], 1.0, 0.75),
        ([1, 1, 0, 1], 0.75, 0.5995),
        ([1, 1, 0, 1], 0.7, 0.5995),
        ([0, 1, 1, 1], 0.9, None),
        ([0, 1, 1, 1], 0.7, 0.5995),
        ([1, 1, 1, 1], 1.0, 0.5995),
    ],
)
def test_the_lowest_threshold_that_is_right_often_enough(
    right: list[int], accuracy: float, threshold: float | None
) -> None:
    found = fit_threshold(logits(0.9, 0.8, 0.7, 0.6), 1 - torch.tensor(right), accuracy)
    assert found == (None if threshold is None else pytest.approx(threshold))


def test_rows_of_one_probability_go_together() -> None:
    assert fit_threshold(logits(0.9, 0.8, 0.8), torch.tensor([0, 0, 1]), 0.9) == pytest.approx(0.85)


@pytest.mark.parametrize(("model", "template"), [("llama", "[P*2] {text} [P]"), ("bert", "[P] {text} it was [MASK]")])
def test_they_are_exported(
    model: str, template: str, rows_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same training with and without: logits are divided by the temperature, and parity holds."""
    path: Path = request.getfixturevalue(model)
    for name, options in (("plain", {}), ("both", {"calibrate": True, "abstain": 0.5})):
        train_tiny(path, rows_file, template, tmp_path / f"{name}-run", labels=LABELS, **options)
        export(ExportConfig(runs=(tmp_path / f"{name}-run",), out=tmp_path / name), Quiet())
    metrics = Run.read(tmp_path / "both-run").metrics
    plain, both = Engine.open(tmp_path / "plain"), Engine.open(tmp_path / "both")
    texts = ["the film was bright", "slow", "", "the story was very very dull"]
    assert metrics.temperature != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(both.logits(texts) * metrics.temperature, plain.logits(texts), atol=1e-4)
    assert both.manifest.task.abstain_below == metrics.abstain_below is not None
    assert both.manifest.task.parity.tolerance == pytest.approx(
        plain.manifest.task.parity.tolerance / metrics.temperature
    )
    assert plain.manifest.task.abstain_below is None
    assert all(answer.label is not None for answer in plain.predict(texts))


@pytest.mark.parametrize("text", ["{text} [P]", "[P] {text} it"])
def test_what_was_asked_of_dev_rows_the_bundle_keeps(text: str, llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """A run whose threshold is the surest but one: float32 and another library give the same rows a label."""
    dev = list(read_rows(rows_file))
    train_tiny(llama, rows_file, text, tmp_path / "run", labels=LABELS, dev=str(rows_file))
    engine = Engine.open(export_to(tmp_path / "run", tmp_path / "plain"))
    logits = torch.from_numpy(engine.logits([row.text for row in dev]))
    targets = torch.tensor([engine.labels.index(row.label or "") for row in dev])
    right = (logits.argmax(1) == targets).double()
    asked = right.mean().item() + 0.05
    train_tiny(llama, rows_file, text, tmp_path / "sure", labels=LABELS, dev=str(rows_file), abstain=asked)
    answers = Engine.open(export_to(tmp_path / "sure", tmp_path / "bundle")).predict([row.text for row in dev])
    answered = [(a.label, row.label) for a, row in zip(answers, dev, strict=True) if a.label is not None]
    assert 0 < len(answered) < len(dev)
    assert np.mean([label == wanted for label, wanted in answered]) >= asked
