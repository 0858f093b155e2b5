"""Each task of a multi-task bundle predicts as in a bundle of its own, and controls in which it must not."""

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
from tiny import ROWS, Quiet, sample, train_tiny
from torch import Tensor, nn

from ptexport.exporters.bake import bake
from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import compare_graph
from ptexport.exporters.parity.reference import Reference
from ptexport.exporters.parity.report import ParityReport, TaskReport, summarize
from ptexport.exporters.trace.cached import Trace
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.bundle.manifest import Pooling, TargetName
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.engine import Engine
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


@pytest.mark.parametrize("model", sample(["llama", "mistral", "bert", "roberta"], "bert"))
def test_every_task_answers_as_its_own_bundle_does(
    model: str, runs_of: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    runs = runs_of(model)
    target: TargetName = "cpu" if model == "bert" else "tensorrt"
    manifest = export(ExportConfig(runs=tuple(runs), out=tmp_path / "all", target=target), Quiet())
    assert (manifest.graph.target, manifest.fan_out) == (target, model == "llama")
    assert read_manifest((tmp_path / "all" / "manifest.json").read_bytes(), "").tasks == manifest.tasks
    report = ParityReport.read(tmp_path / "all")
    assert [task.name for task in report.tasks] == [run.name for run in runs]
    assert [summarize(task) for task in report.tasks] == [task.parity for task in manifest.tasks]
    assert max(map(worst_of, report.tasks)) < 1e-4
    card = (tmp_path / "all" / "README.md").read_text(encoding="utf-8")
    assert all(f"## {run.name}\n" in card for run in runs)
    arrays = OnnxFile.parse((tmp_path / "all" / "model.onnx").read_bytes(), "").arrays
    assert set(arrays) == (set() if target == "tensorrt" else {"prompt_embeddings", "label_weights", "label_bias"})
    many = Engine.open(tmp_path / "all")
    together = many.predict_all(TEXTS)
    mixed = many.predict([text for text in TEXTS for _ in runs], task=[run.name for run in runs] * len(TEXTS))
    for t, run in enumerate(runs):
        export(ExportConfig(runs=(run,), out=tmp_path / run.name), Quiet())
        alone = Engine.open(tmp_path / run.name).predict(TEXTS)
        for row, expected in enumerate(alone):
            for got in (mixed[row * len(runs) + t], together[row][run.name]):
                assert (got.label, got.truncated) == (expected.label, expected.truncated)
                assert np.abs(logits_of(got.probabilities) - logits_of(expected.probabilities)).max() < 1e-4


def worst_of(task: TaskReport) -> float:
    ways = [task.alone, task.padded_right, task.padded_left] + [task.fan_out] * (task.fan_out is not None)
    largest = summarize(task).all_lengths
    assert largest is not None
    return max(*(way.max_abs_diff for way in ways), largest)


def compared(joint: JointTasks, backbone: Backbone, folder: Path) -> list[float]:
    """Compare a graph with the untouched models of some runs; each task's largest difference of a logit."""
    references = [Reference.compute(run, backbone, run.check_rows, Quiet()) for run in joint.runs.values()]
    return [worst_of(task) for task in compare_graph(joint, references, folder)]


def checked(joint: JointTasks, baked: JointTasks, folder: Path) -> list[float]:
    """Bake some runs and compare them with the untouched models of others, the same ones but for controls."""
    folder.mkdir()
    backbone = load_backbone_of(joint.first.config, Path())
    bake(baked, traced_of(joint, backbone), folder)
    return compared(joint, backbone, folder)


def traced_of(joint: JointTasks, backbone: Backbone) -> Trace:
    return trace(backbone, joint.first.config.pooling, has_prefix_kv=joint.has_prefix_kv, opset=18, kind=joint.kind)


def joint_of(runs: list[Path]) -> JointTasks:
    return JointTasks({run.name: Run.read(run) for run in runs})


class Broken(JointTasks):
    """Runs whose arrays are changed after they were joint."""

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
    joint = joint_of(runs_of(model))
    worst = checked(joint, Broken(joint.runs, change), tmp_path / "graph")
    assert {t for t, difference in enumerate(worst) if difference > 1e-2} == seen_by
    assert all(difference < 1e-4 for t, difference in enumerate(worst) if t not in seen_by)


class SeesOtherTasks(JointTasks):
    """Every task's tail is shared, so that those after it see it and count it."""

    def _owned(self, t: int, items: Sequence[TemplateToken | TextSlot]) -> tuple[TemplateToken | TextSlot, ...]:
        owned = super()._owned(t, items)
        return (*(replace(item, type_id=0) for item in owned[:-1]), owned[-1])


def test_control_without_the_block_mask_a_task_sees_the_ones_before_it(
    runs_of: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    joint = joint_of(runs_of("llama"))
    worst = checked(joint, SeesOtherTasks(joint.runs), tmp_path / "graph")
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
    joint = joint_of(runs_of(model))
    backbone = load_backbone_of(joint.first.config, Path())
    facts = msgspec.structs.replace(backbone.facts, fingerprint="wrong positions")
    fields = {"head": backbone.head, "tokenizer_json": backbone.tokenizer_json, "facts": facts}
    wrong = WrongPositions(model=backbone.model, **fields)
    runs = {
        name: replace(run, config=msgspec.structs.replace(run.config, backbone=facts))
        for name, run in joint.runs.items()
    }
    bake(JointTasks(runs), traced_of(joint, wrong), tmp_path)
    worst = compared(joint, backbone, tmp_path)
    assert {t for t, difference in enumerate(worst) if difference > 1e-2} == seen_by


def test_runs_that_do_not_go_together_are_refused_by_name(
    runs_of: Callable[[str], list[Path]], llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    llamas, berts = runs_of("llama"), runs_of("bert")
    with pytest.raises(ExportError, match="task-0 twice"):
        export(ExportConfig(runs=(llamas[0], berts[0]), out=tmp_path / "out"), Quiet())
    with pytest.raises(ExportError, match="task task-1: its backbone is"):
        export(ExportConfig(runs=(llamas[0], berts[1]), out=tmp_path / "out"), Quiet())
    options = {"labels": "positive,negative", "head": "linear"}
    pooled = train_tiny(llama, rows_file, "[P] {text}", tmp_path / "tuned", train_backbone=True, **options)
    with pytest.raises(ExportError, match="task tuned: its backbone was trained with it"):
        export(ExportConfig(runs=(llamas[0], pooled), out=tmp_path / "out"), Quiet())
    for option, message in (
        ({"rows": rows_file}, "rows: got 2 runs, need one"),
        ({"autotune": True}, "tune: got 2 runs, need one"),
        ({"precision": "int8"}, "precision int8: got 2 runs, need one"),
    ):
        with pytest.raises(ExportError, match=message):
            ExportConfig(runs=(llamas[0], llamas[1]), out=tmp_path / "out", **option)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_engines_with_the_same_frame_share_a_session(runs_of: Callable[[str], list[Path]], tmp_path: Path) -> None:
    """Task arrays of several tasks are overridable, as of one: another number of tasks runs in the same session."""
    first, second, third = runs_of("llama")
    export(ExportConfig(runs=(first, second), out=tmp_path / "two"), Quiet())
    export(ExportConfig(runs=(first, second, third), out=tmp_path / "three"), Quiet())
    with Engine.open(tmp_path / "two") as two, Engine.open(tmp_path / "three") as three:
        assert two._state.get().graph.session is three._state.get().graph.session
        got, expected = two.predict_all(TEXTS), three.predict_all(TEXTS)
        for one, other in zip(got, expected, strict=True):
            for name, prediction in one.items():
                np.testing.assert_allclose(
                    logits_of(prediction.probabilities), logits_of(other[name].probabilities), atol=1e-4
                )


def test_control_a_difference_in_one_task_fails_the_export(
    runs_of: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    """Damage the label weights of the second run, which its untouched model does not read."""
    first, second, _ = runs_of("llama")
    run = Run.read(second)
    (tmp_path / "task-1").mkdir()
    swapped = replace(run.arrays, label_weights=run.arrays.label_weights[::-1].copy())
    replace(run, arrays=swapped).write(tmp_path / "task-1")
    with pytest.raises(ExportError, match=r"task task-1: parity \(alone\): .* labels differ .* no bundle was written"):
        export(ExportConfig(runs=(first, tmp_path / "task-1"), out=tmp_path / "out"), Quiet())
    assert not (tmp_path / "out").exists()


CHOICES = [("the film was", ["bright", "dull"]), ("a story is", ["slow", "very fast", "dull and slow"])]
RIGHT: dict[str, object] = {"labels": "right=yes,wrong=no"}


@pytest.mark.parametrize("case", ["choice beside text", "choices alone"])
def test_a_multiple_choice_is_a_task_like_others(case: str, llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """Its rows are pairs of a text and a candidate; where every task has such rows, one pass serves all of them."""
    lines = [
        {"text": f"{text} {word}", "choices": choices, "label": number % 2}
        for number, (text, choices) in enumerate(CHOICES)
        for word in ("a", "the", "it", "very", "city", "of", "and", "yes")
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    runs = [train_tiny(llama, path, "Review: {text} {choice} is it [P*2]", tmp_path / "choice", **RIGHT)]
    if case == "choices alone":
        runs.append(train_tiny(llama, path, "Review: {text} {choice} [P*3]", tmp_path / "other", **RIGHT))
    else:
        runs.append(train_tiny(llama, rows_file, "{text} [P*3]", tmp_path / "other"))
    manifest = export(ExportConfig(runs=tuple(runs), out=tmp_path / "all"), Quiet())
    assert manifest.fan_out == (case == "choices alone")
    assert manifest.tasks[0].fields == ["text", "choice"]
    assert manifest.tasks[0].parity is not None
    n_pairs = sum(len(row.choices or ()) for row in Run.read(runs[0]).check_rows)
    assert manifest.tasks[0].parity.rows == n_pairs + 3
    export(ExportConfig(runs=(runs[0],), out=tmp_path / "alone"), Quiet())
    rows = [(text, choices) for text, choices in CHOICES]
    expected = Engine.open(tmp_path / "alone").choose(rows)
    for got, other in zip(Engine.open(tmp_path / "all").choose(rows, task="choice"), expected, strict=True):
        assert got.label == other.label
        assert got.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def check_signing(bundle: Path, folder: Path) -> None:
    """Sign it, open it, and open it with a file changed."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    public = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    command = ["sign", str(bundle), "--private-key", str(folder / "key.pem")]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    Engine.open(bundle, require_signature=folder / "key.pub")
    command = ["predict", str(bundle), "a", "--task", "all", "--require-signature", str(folder / "key.pub")]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).output.count("\n") == 3
    templates = (bundle / "templates.json").read_text()
    (bundle / "templates.json").write_text(templates + " ")
    with pytest.raises(SignatureError, match=r"Hash mismatch for 'templates\.json'"):
        Engine.open(bundle, require_signature=folder / "key.pub")
    (bundle / "templates.json").write_text(templates)


def check_inspection(bundle: Path, runs: list[Path]) -> None:
    """What is said of each task is what is said of its run; [P k] are numbered on from task to task."""
    done = CliRunner().invoke(cli, ["inspect", str(bundle), "--json"], catch_exceptions=False)
    record = json.loads(done.output)
    assert [task["name"] for task in record["tasks"]] == [run.name for run in runs]
    assert record["structure"]["layers"] == 2
    first = 0
    for task, run in zip(record["tasks"], map(describe, runs), strict=True):
        assert (task["template"], task["labels"], task["first_virtual_token"]) == (
            run["template"],
            run["labels"],
            first,
        )
        words = [[word for word, _ in near] for near in run["nearest_words"]]
        assert [[word for word, _ in near] for near in task["nearest_words"]] == words
        named = [piece[0] for piece in task["template_tokens"] if isinstance(piece, list)]
        assert {f"[P {first + i}]" for i in range(len(words))} <= set(named)
        first += len(words)
    said = CliRunner().invoke(cli, ["inspect", str(bundle)], catch_exceptions=False).output
    assert all(what in said for what in ("task task-1", f"[P {first - 1}] is nearest to", "attention, 2 layers"))


def test_a_task_must_be_named_where_there_are_several(runs_of: Callable[[str], list[Path]], tmp_path: Path) -> None:
    export(ExportConfig(runs=tuple(runs_of("bert")), out=tmp_path / "all"), Quiet())
    check_inspection(tmp_path / "all", runs_of("bert"))
    engine = Engine.open(tmp_path / "all")
    with pytest.raises(DataError, match="task: got none, need one of task-0, task-1, task-2"):
        engine.predict(["a"])
    with pytest.raises(DataError, match="task 'x': unknown, need one of task-0, task-1, task-2"):
        engine.predict(["a"], task="x")
    with pytest.raises(DataError, match="got 2 names and 1 texts"):
        engine.predict(["a"], task=["task-0", "task-1"])
    assert engine.predict([], task="task-0") == engine.predict_all([]) == []
    check_signing(tmp_path / "all", tmp_path)
    assert list(engine.predict_iter(iter(TEXTS), task="task-1")) == engine.predict(TEXTS, task="task-1")
    with pytest.raises(DataError, match="got one string, need a list of texts"):
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
        Engine.open(tmp_path / "all")
