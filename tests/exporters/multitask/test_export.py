"""Many tasks in one graph answer as each does in a bundle of its own, and controls in which they must not."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tiny import ROWS, Quiet, train_tiny
from torch import Tensor, nn

from ptexport.exporters.export import ExportConfig, export
from ptexport.exporters.multitask.export import bake_tasks, check_tasks, export_tasks
from ptexport.exporters.multitask.join import Joined
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.bundle.manifest import Pooling, TaskEntry
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.tasks import TaskEngine
from ptexport.runtime.errors import BundleError, DataError, EngineError, ExportError, SignatureError
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.evaluation.describe import describe
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.compile import TemplateToken, TextSlot

THREE = "positive=great,negative=terrible,Asia=Asia"
SHORT: dict[str, object] = {"max_length": 24}  # as many as its window holds
TASKS: dict[str, list[tuple[str, dict[str, object]]]] = {
    # Nothing, or the same words, before the text: one reading answers all.
    "llama": [
        ("{text} It was [P*2]", {}),
        ("{text} [P*3]", {}),
        ("{text} [P] is it", {"labels": THREE}),
    ],
    # Leading rows, none, and words, of other lengths.
    "mistral": [("[P*3] {text} [P]", SHORT), ("{text} It was [P*2]", SHORT), ("Review: {text} [P*2]", SHORT)],
    "bert": [("[P] {text} [P*2] [MASK]", {}), ("{text} it was [MASK] [P]", {}), ("[P*2] {text} [MASK]", {})],
    "roberta": [("[P*4] {text} [MASK]", {"method": "p-tuning-v2"}), ("[P] {text} It was [MASK]", {})],
}
TEXTS = [text for text, _ in ROWS[::5]] + ["", "Asia " * 60, "[P 0] <mask>"]


@pytest.fixture(scope="module")
def runs_of(
    rows_file: Path, tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], Path]
) -> Callable[[str], list[Path]]:
    made: dict[str, list[Path]] = {}

    def make(model: str) -> list[Path]:
        if model not in made:
            folder = tmp_path_factory.mktemp(model)
            made[model] = [
                train_tiny(model_of(model), rows_file, template, folder / f"task-{t}", **options)
                for t, (template, options) in enumerate(TASKS[model])
            ]
        return made[model]

    return make


def logits_of(prediction: dict[str, float]) -> np.ndarray:
    return np.log(np.array(list(prediction.values())))


@pytest.mark.parametrize("model", ["llama", "mistral", "bert", pytest.param("roberta", marks=pytest.mark.soak)])
def test_every_task_answers_as_its_own_bundle_does(
    model: str, runs_of: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    runs = runs_of(model)
    manifest = export_tasks(runs, tmp_path / "all", Quiet(), target="tensorrt")
    assert (manifest.target, manifest.fan_out) == ("tensorrt", model == "llama")
    assert read_manifest((tmp_path / "all" / "manifest.json").read_bytes(), "").tasks == manifest.tasks
    assert max(map(worst_of, manifest.tasks)) < 1e-4
    many = TaskEngine.open(tmp_path / "all")
    together = many.predict_all(TEXTS)
    mixed = many.predict([text for text in TEXTS for _ in runs], task=[run.name for run in runs] * len(TEXTS))
    for t, run in enumerate(runs):
        export(ExportConfig(runs=(run,), out=tmp_path / run.name), Quiet())
        alone = Engine.open(tmp_path / run.name).predict(TEXTS)
        for row, expected in enumerate(alone):
            for got in (mixed[row * len(runs) + t], together[row][run.name]):
                assert (got.label, got.truncated) == (expected.label, expected.truncated)
                assert np.abs(logits_of(got.probabilities) - logits_of(expected.probabilities)).max() < 1e-4


def worst_of(task: TaskEntry) -> float:
    parity = task.parity
    compared = [parity.alone, parity.padded_right, parity.padded_left] + [task.fan_out] * (task.fan_out is not None)
    return max(result.max_abs_diff for result in compared)


def checked(joined: Joined, baked: Joined, folder: Path) -> list[float]:
    """Bake some runs and compare them with the oracle of others, the same ones but for controls; each task's worst."""
    folder.mkdir()
    backbone = load_backbone_of(joined.first.config, Path())
    traced = trace(
        backbone, joined.first.config.pooling, has_prefix_kv=joined.has_prefix_kv, opset=18, kind=joined.kind
    )
    bake_tasks(baked, traced, folder)
    return [worst_of(task) for task in check_tasks(joined, backbone, folder, Quiet())]


def joined_of(runs: list[Path]) -> Joined:
    return Joined({run.name: Run.read(run) for run in runs})


class Broken(Joined):
    """Runs whose arrays are changed after they were joined."""

    def __init__(self, runs: dict[str, Run], change: Callable[[dict[str, np.ndarray]], None]) -> None:
        super().__init__(runs)
        self.change = change

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = super().arrays()
        self.change(arrays)
        return arrays


def exchange_labels(arrays: dict[str, np.ndarray]) -> None:
    arrays["label_weights"] = arrays["label_weights"][::-1].copy()


def unmask(arrays: dict[str, np.ndarray]) -> None:
    arrays["prefix_mask"][:] = 1


def zero_a_row(arrays: dict[str, np.ndarray]) -> None:
    arrays["prompt_embeddings"][0] = 0


@pytest.mark.parametrize(
    ("model", "change", "seen_by"),
    [
        ("llama", exchange_labels, {0, 2}),  # the middle one keeps its own
        ("llama", zero_a_row, {0}),
        ("mistral", unmask, {0, 1}),  # the last has the most leading tokens
        ("roberta", unmask, {1}),
    ],
)
def test_control_changed_constants_are_seen_by_the_tasks_they_are_of(
    model: str,
    change: Callable[[dict[str, np.ndarray]], None],
    seen_by: set[int],
    runs_of: Callable[[str], list[Path]],
    tmp_path: Path,
) -> None:
    joined = joined_of(runs_of(model))
    worst = checked(joined, Broken(joined.runs, change), tmp_path / "graph")
    assert {t for t, difference in enumerate(worst) if difference > 1e-2} == seen_by
    assert all(difference < 1e-4 for t, difference in enumerate(worst) if t not in seen_by)


class SeesOtherTasks(Joined):
    """Every task's tail is shared, so that those after it see it and count it."""

    def _owned(self, t: int, items: Sequence[TemplateToken | TextSlot]) -> tuple[TemplateToken | TextSlot, ...]:
        owned = super()._owned(t, items)
        return (*(replace(item, type_id=0) for item in owned[:-1]), owned[-1])


def test_control_without_the_block_mask_a_task_sees_the_ones_before_it(
    runs_of: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    joined = joined_of(runs_of("llama"))
    worst = checked(joined, SeesOtherTasks(joined.runs), tmp_path / "graph")
    assert worst[0] < 1e-4
    assert min(worst[1:]) > 1e-2


class CountsAlongTheRow(nn.Module):
    """A backbone that gives a task's tokens the positions they have in the row, behind those of other tasks."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *, inputs_embeds: Tensor, position_ids: Tensor, **rest: object) -> object:
        positions = torch.arange(inputs_embeds.shape[1])[None].expand_as(position_ids)
        return self.base(inputs_embeds=inputs_embeds, position_ids=positions, **rest)


class WrongPositions(Backbone):
    def classifier(self, pooling: Pooling) -> PromptClassifier:
        classifier = PromptClassifier(self.model, pooling).eval()
        if pooling == "last":
            classifier.base = CountsAlongTheRow(classifier.base)
        else:
            classifier.first_position += 1
        return classifier


@pytest.mark.parametrize(("model", "seen_by"), [("llama", {1, 2}), ("bert", {0, 1, 2})])
def test_control_wrong_positions_are_seen(
    model: str, seen_by: set[int], runs_of: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    joined = joined_of(runs_of(model))
    backbone = load_backbone_of(joined.first.config, Path())
    facts = msgspec.structs.replace(backbone.facts, fingerprint="wrong positions")
    fields = {"head": backbone.head, "tokenizer_json": backbone.tokenizer_json, "facts": facts}
    wrong = WrongPositions(model=backbone.model, **fields)
    traced = trace(wrong, joined.first.config.pooling, has_prefix_kv=joined.has_prefix_kv, opset=18, kind=joined.kind)
    bake_tasks(joined, traced, tmp_path)
    worst = [worst_of(task) for task in check_tasks(joined, backbone, tmp_path, Quiet())]
    assert {t for t, difference in enumerate(worst) if difference > 1e-2} == seen_by


def test_runs_that_do_not_go_together_are_refused_by_name(
    runs_of: Callable[[str], list[Path]], llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    llamas, berts = runs_of("llama"), runs_of("bert")
    with pytest.raises(ExportError, match="task-0 twice"):
        export_tasks([llamas[0], berts[0]], tmp_path / "out", Quiet())
    with pytest.raises(ExportError, match="task task-1: its backbone is"):
        export_tasks([llamas[0], berts[1]], tmp_path / "out", Quiet())
    options = {"labels": "positive,negative", "head": "linear"}
    pooled = train_tiny(llama, rows_file, "[P] {text}", tmp_path / "tuned", train_backbone=True, **options)
    with pytest.raises(ExportError, match="task tuned: its backbone was trained with it"):
        export_tasks([llamas[0], pooled], tmp_path / "out", Quiet())
    assert not (tmp_path / "out").exists()


def check_signing(bundle: Path, folder: Path) -> None:
    """Sign it, open it, and open it with a file changed."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    public = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    command = ["sign", str(bundle), "--private-key", str(folder / "key.pem")]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    TaskEngine.open(bundle, require_signature=folder / "key.pub")
    command = ["predict", str(bundle), "a", "--task", "all", "--require-signature", str(folder / "key.pub")]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).output.count("\n") == 3
    templates = (bundle / "templates.json").read_text()
    (bundle / "templates.json").write_text(templates + " ")
    with pytest.raises(SignatureError, match=r"Hash mismatch for 'templates\.json'"):
        TaskEngine.open(bundle, require_signature=folder / "key.pub")
    (bundle / "templates.json").write_text(templates)


def check_inspection(bundle: Path, runs: list[Path]) -> None:
    """What is said of each task is what is said of its run; [P k] are numbered on from task to task."""
    done = CliRunner().invoke(cli, ["inspect", str(bundle), "--json"], catch_exceptions=False)
    record = json.loads(done.output)
    assert [task["name"] for task in record["tasks"]] == [run.name for run in runs]
    assert record["structure"]["layers"] == 2
    first = 0
    for task, run in zip(record["tasks"], map(describe, runs), strict=True):
        assert (task["template"], task["labels"], task["first_row"]) == (run["template"], run["labels"], first)
        words = [[word for word, _ in near] for near in run["nearest_words"]]
        assert [[word for word, _ in near] for near in task["nearest_words"]] == words
        named = [piece[0] for piece in task["template_tokens"] if isinstance(piece, list)]
        assert {f"[P {first + i}]" for i in range(len(words))} <= set(named)
        first += len(words)
    said = CliRunner().invoke(cli, ["inspect", str(bundle)], catch_exceptions=False).output
    assert all(what in said for what in ("task task-1", f"[P {first - 1}] is nearest to", "attention, 2 layers"))


def test_a_bundle_of_many_is_refused_where_one_is_needed(runs_of: Callable[[str], list[Path]], tmp_path: Path) -> None:
    export_tasks(runs_of("bert"), tmp_path / "all", Quiet())
    check_inspection(tmp_path / "all", runs_of("bert"))
    with pytest.raises(BundleError, match="holds many tasks, need one"):
        Engine.open(tmp_path / "all")
    engine = TaskEngine.open(tmp_path / "all")
    with pytest.raises(DataError, match="task 'x': unknown, need one of task-0, task-1, task-2"):
        engine.predict(["a"], task="x")
    with pytest.raises(DataError, match="got 1 texts and 2 tasks"):
        engine.predict(["a"], task=["task-0", "task-1"])
    assert engine.predict([], task="task-0") == engine.predict_all([]) == []
    check_signing(tmp_path / "all", tmp_path)
    assert list(engine.predict_iter(iter(TEXTS), task="task-1")) == engine.predict(TEXTS, task="task-1")
    with pytest.raises(DataError, match="got one string, need an iterable"):
        engine.predict_iter("a", task="task-1")
    with engine:
        answers = engine.predict_iter(TEXTS, task="task-1")
    for ask in (lambda: engine.predict_all(TEXTS), lambda: next(answers), engine.__enter__):
        with pytest.raises(EngineError, match="engine: is closed; open the bundle again"):
            ask()
    manifest = tmp_path / "all" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["tasks"].reverse()
    manifest.write_text(json.dumps(record))
    with pytest.raises(BundleError, match="digest"):
        TaskEngine.open(tmp_path / "all")
