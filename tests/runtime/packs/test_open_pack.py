"""`Engine.open_pack`: a pack's tasks in an open engine predict, bit for bit, what the exported bundle does."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packed import pack_of, variant
from tiny import Quiet, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime import BundleError, DataError, Engine, EngineError, PackError, ProviderError
from ptexport.runtime.engine.answer import BatchRecord
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.text_encoder import TextEncoder, TokenIds
from ptexport.runtime.ort.providers import Provider
from ptexport.runtime.packs.pack_file import Pack
from ptexport.toolkit.run.run import Run

TEXTS = ["the film was bright", "", "a story " * 40, "[P 0] [P 1] <mask> [MASK] </s>", "[unused 501] [SEP] ünter 🙂"]
CASES: dict[str, tuple[str, list[list[str]]]] = {
    # The pack's tasks, then those of the open bundle: fewer and more virtual tokens.
    "bytes": ("llama", [["[P*4] {text} It was [P*3]"], ["[P*2] Review: {text} It was [P*2]"]]),
    "pieces": ("bert", [["[P] {text} [MASK]"], ["{text} [P*4] [MASK]"]]),
    "a list": ("xlm-roberta", [["{text} [P*4] [MASK]"], ["[P] {text} [MASK]"]]),
    "several": (
        "bert",
        [["[P] {text} [MASK]", "{text} [P*2] [MASK]"], ["{text} was [P] [MASK]", "[P*3] {text} [MASK]"]],
    ),
}


@pytest.fixture(scope="module")
def llama_pack(llama_bundle: Path, llama_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack for `llama_bundle`: its own task, but for a bias."""
    folder = tmp_path_factory.mktemp("packs")
    own = pack_of(llama_bundle, llama_run, folder / "own.ptpack")
    return variant(own, llama_bundle, folder / "task.ptpack", 0.5)


def encoders_of(engine: Engine) -> list[TextEncoder]:
    encoders = engine._state.get().encoders
    return [*encoders.of_task, *([] if encoders.of_all is None else [encoders.of_all])]


def ids_of(engine: Engine) -> list[list[list[int]]]:
    return [[encoding.ids for encoding in encoder.encode(TEXTS)] for encoder in encoders_of(engine)]


def session_of(engine: Engine) -> object:
    return engine._state.get().graph.session


def logits_of(engine: Engine) -> list[np.ndarray]:
    return [task.logits([text]) for task in engine.tasks.values() for text in TEXTS]


def equal(got: list[np.ndarray], need: list[np.ndarray]) -> bool:
    return all(g.shape == n.shape and np.array_equal(g, n) for g, n in zip(got, need, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_predicts_what_the_exported_bundle_does(
    case: str, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    model, templates = CASES[case]
    own, others = (
        tuple(
            train_tiny(model_of(model), rows_file, template, tmp_path / f"{name}-{n}")
            for n, template in enumerate(some)
        )
        for name, some in zip(("own", "other"), templates, strict=True)
    )
    export(ExportConfig(runs=own, out=tmp_path / "own"), Quiet())
    export(ExportConfig(runs=others, out=tmp_path / "other"), Quiet())
    vocab = Run.read(own[0]).config.facts.vocab
    (tmp_path / "own.ptpack").write_bytes(Pack.of(tmp_path / "own", vocab, [None] * len(own)).to_bytes())
    files = sorted(tmp_path.iterdir())
    need, base = Engine.open(tmp_path / "own"), Engine.open(tmp_path / "other")
    got = base.open_pack(tmp_path / "own.ptpack")
    assert sorted(tmp_path.iterdir()) == files
    assert session_of(got) is session_of(base)
    assert list(got.tasks) == list(need.tasks)
    assert ids_of(got) == ids_of(need)
    assert [encoder.n_ids for encoder in encoders_of(got)] == [encoder.n_ids for encoder in encoders_of(need)]
    assert equal(logits_of(got), logits_of(need))
    assert not equal(logits_of(base), logits_of(need)), "the control: another task"
    assert got.predict_all(TEXTS[:1]) == need.predict_all(TEXTS[:1])
    assert got.manifest.digest == need.manifest.digest
    assert got.info.golden_max_abs_diff < 1e-4
    assert got.labels == need.labels if len(own) == 1 else got.tasks


def test_ten_packs_have_one_session_and_a_task_each(llama_bundle: Path, llama_pack: Path, tmp_path: Path) -> None:
    base = Engine.open(llama_bundle)
    paths = [variant(llama_pack, llama_bundle, tmp_path / f"{n}.ptpack", n / 4, name=f"t{n}") for n in range(10)]
    engines = [base.open_pack(path) for path in paths]
    assert {id(session_of(engine)) for engine in (base, *engines)} == {id(session_of(base))}
    logits = [engine.logits(TEXTS) for engine in engines]
    for n in range(10):
        assert list(engines[n].tasks) == [f"t{n}"]
        np.testing.assert_allclose(logits[n][:, 0] - logits[0][:, 0], n / 4, atol=1e-4)
        np.testing.assert_array_equal(logits[n][:, 1], logits[0][:, 1])
    assert np.abs(logits[1] - logits[0]).max() > 0.2, "the control: other tasks"


def test_it_works_on_after_its_base_is_closed_and_is_a_base_itself(
    llama_bundle: Path, llama_pack: Path, tmp_path: Path
) -> None:
    path = variant(llama_pack, llama_bundle, tmp_path / "more.ptpack", 1.0)
    with Engine.open(llama_bundle) as base:
        first = base.open_pack(llama_pack)
        need = base.open_pack(path).logits(TEXTS)
    with pytest.raises(EngineError, match="is closed"):
        base.open_pack(llama_pack)
    second = first.open_pack(path)
    np.testing.assert_array_equal(second.logits(TEXTS), need)
    assert np.abs(first.logits(TEXTS) - need).max() > 0.9, "the control: the task it was opened on"


def test_what_is_refused(llama_bundle: Path, bert_bundle: Path, llama_pack: Path, tmp_path: Path) -> None:
    base, path, data = Engine.open(llama_bundle), tmp_path / "task.ptpack", llama_pack.read_bytes()
    base.open_pack(llama_pack)
    cases = {
        "missing, or not a file": None,
        "not a complete pack": data[: len(data) // 2],
        "its digest does not match": data[:-1] + bytes([data[-1] ^ 1]),
    }
    for message, content in cases.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PackError, match=f"task.ptpack: {message}"):
            base.open_pack(path)
    with pytest.raises(PackError, match=r"is for tiny-llama \(\w{16}\), .* has tiny-bert"):
        Engine.open(bert_bundle).open_pack(llama_pack)
    variant(llama_pack, llama_bundle, path, 1.0)
    base.open_pack(path)
    variant(llama_pack, llama_bundle, path, 1.0, golden=0.1)
    with pytest.raises(BundleError, match=r"task.ptpack: a logit of its golden rows differs by 0.1, need at most"):
        base.open_pack(path)


def test_a_base_that_changed_on_disk_is_refused(llama_bundle: Path, llama_pack: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama_bundle, tmp_path / "base"))
    base = Engine.open(folder)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer.replace(b"bright", b"thgirb"))
    with pytest.raises(BundleError, match=r"tokenizer.json: was changed since the bundle was opened; open it again"):
        base.open_pack(llama_pack)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    base.open_pack(llama_pack)
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match=r"tokenizer.json: cannot be read \(No such file or directory\)"):
        base.open_pack(llama_pack)


@pytest.mark.parametrize("provider", [Provider(cuda_graph=True), Provider(name="TensorrtExecutionProvider")])
def test_a_session_of_one_task_is_not_shared(
    provider: Provider, llama_bundle: Path, llama_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the engine's session is under TensorRT and with CUDA graphs, which no test machine has."""
    base = Engine.open(llama_bundle)
    graph = base._state.get().graph
    monkeypatch.setattr(graph, "file", None)
    monkeypatch.setattr(graph, "provider", provider)
    with pytest.raises(ProviderError, match="got a session for one task, need one that tasks share; open the bundle"):
        base.open_pack(llama_pack)


def test_golden_rows_are_batches_of_one_and_find_room(llama_bundle: Path, llama_pack: Path) -> None:
    records: list[BatchRecord] = []
    batcher = Batcher(max_waiting=1, on_batch=records.append)
    base = Engine.open(llama_bundle, batcher=batcher)
    waiting = base.task().submit(["a story"] * 300)
    engine = base.open_pack(llama_pack)
    assert len(waiting.result().items) == 300
    assert [record.rows for record in records].count(1) >= len(engine.manifest.task.golden) == 4
    assert sum(record.rows for record in records) == 304


def test_ids_beyond_the_packs_own_are_refused(llama_bundle: Path, llama_pack: Path) -> None:
    (encoder,) = encoders_of(Engine.open(llama_bundle).open_pack(llama_pack))
    encoder.check_ids(TokenIds([encoder.n_ids - 1], [0]), "row", 48)
    with pytest.raises(DataError, match="got an id out of range"):
        encoder.check_ids(TokenIds([encoder.n_ids], [0]), "row", 48)


def test_without_safetensors_one_sentence_says_so(llama_bundle: Path, llama_pack: Path) -> None:
    code = (
        "import sys\nsys.modules['safetensors'] = None  # cannot be imported\n"
        "from ptexport.runtime import Engine, MissingExtraError\n"
        f"engine = Engine.open({str(llama_bundle)!r})\n"
        f"try: engine.open_pack({str(llama_pack)!r})\n"
        "except MissingExtraError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "packs need the package 'safetensors'; pip install 'ptexport[install]'\n"
