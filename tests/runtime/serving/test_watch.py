"""Bundles and packs that come, change and go in a folder: what is served, what is refused, and who is answered."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packed import pack_of, variant

from ptexport.runtime import Engine, EngineError
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.serving.models import Models
from ptexport.runtime.serving.watch import Watch

TEXTS = ["the film was bright", "a dull story"]


@pytest.fixture(scope="module")
def llama_pack(llama_bundle: Path, llama_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of `llama_bundle`."""
    return pack_of(llama_bundle, llama_run, tmp_path_factory.mktemp("packs") / "task.ptpack")


class Place:
    """A watched folder, the models of a server, and its log."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.models = Models()
        self.events: list[tuple[str, str]] = []
        self.reasons: list[str] = []
        self.batcher = Batcher()
        self.watch = Watch(folder, self.models, open_bundle=self.open_bundle, log=self.log)

    def open_bundle(self, path: Path) -> Engine:
        return Engine.open(path, provider="cpu", batcher=self.batcher)

    def log(self, event: str, **fields: object) -> None:
        self.events.append((event, Path(str(fields.get("source", ""))).name))
        if "reason" in fields:
            self.reasons.append(str(fields["reason"]))

    def look(self) -> list[tuple[str, str]]:
        """Look until what is there is settled; returns what happened."""
        self.events.clear()
        for _ in range(3):
            self.watch.look()
        return list(self.events)

    def logits(self, name: str) -> np.ndarray:
        return self.models.find(name).task.logits(TEXTS)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "watched")


@pytest.fixture
def served(place: Place, llama_bundle: Path) -> Place:
    """A place with the bundle `reviews`."""
    shutil.copytree(llama_bundle, place.folder / "reviews")
    assert place.look() == [("model-loaded", "reviews")]
    return place


def session_of(engine: Engine) -> object:
    return engine._state.get().graph.session


def test_ten_packs_cost_one_session(served: Place, llama_bundle: Path, llama_pack: Path) -> None:
    for n in range(10):
        variant(llama_pack, llama_bundle, served.folder / f"{n}.ptpack", n / 4, name=f"t{n}")
    assert served.look() == [("model-loaded", f"{n}.ptpack") for n in range(10)]
    assert served.models.names() == ["reviews", *(f"t{n}" for n in range(10))]
    engines = {model.engine for model in served.models.snapshot()}
    assert len(engines) == 11
    assert len({id(session_of(engine)) for engine in engines}) == 1
    np.testing.assert_allclose((served.logits("t4") - served.logits("t0"))[:, 0], 1.0, atol=1e-4)


def test_a_pack_may_arrive_before_its_bundle(place: Place, llama_bundle: Path, llama_pack: Path) -> None:
    variant(llama_pack, llama_bundle, place.folder / "a.ptpack", 1.0, name="task")
    assert place.look() == [("model-refused", "a.ptpack")]
    assert "a.ptpack: got no open bundle that it fits, need one of tiny-llama" in place.reasons[0]
    assert place.look() == []
    shutil.copytree(llama_bundle, place.folder / "reviews")
    assert place.look() == [("model-loaded", "reviews"), ("model-loaded", "a.ptpack")]


def test_a_pack_of_another_backbone_is_refused(served: Place, bert_bundle: Path, bert_run: Path) -> None:
    pack_of(bert_bundle, bert_run, served.folder / "b.ptpack")
    assert served.look() == [("model-refused", "b.ptpack")]
    assert "got no open bundle that it fits, need one of tiny-bert" in served.reasons[0]
    assert served.models.names() == ["reviews"]


def test_a_bad_pack_is_refused_once_and_what_was_there_stays(
    served: Place, llama_bundle: Path, llama_pack: Path
) -> None:
    path = variant(llama_pack, llama_bundle, served.folder / "a.ptpack", 1.0, name="task")
    assert served.look() == [("model-loaded", "a.ptpack")]
    good, version, data = served.logits("task"), served.models.find("task").version, path.read_bytes()
    bad = {
        "not a complete pack": data[: len(data) // 2],
        "its digest does not match its content": data[:-1] + bytes([data[-1] ^ 1]),
    }
    for message, content in bad.items():
        path.write_bytes(content)
        assert served.look() == [("model-refused", "a.ptpack")], message
        assert served.look() == []
        assert message in served.reasons[-1]
        assert served.models.find("task").version == version
        np.testing.assert_array_equal(served.logits("task"), good)
    variant(llama_pack, llama_bundle, path, 2.0, name="task", golden=0.1)
    assert served.look() == [("model-refused", "a.ptpack")]
    assert "a logit of its golden rows differs" in served.reasons[-1]
    np.testing.assert_array_equal(served.logits("task"), good)
    variant(llama_pack, llama_bundle, path, 2.0, name="task")
    assert served.look() == [("model-swapped", "a.ptpack")]
    np.testing.assert_allclose((served.logits("task") - good)[:, 0], 1.0, atol=1e-4)


def test_rollback_is_another_change(served: Place, llama_bundle: Path, llama_pack: Path) -> None:
    path = served.folder / "a.ptpack"
    seen = []
    for bias in (1.0, 2.0, 1.0):
        variant(llama_pack, llama_bundle, path, bias, name="task")
        served.look()
        seen.append((served.models.find("task").version, served.logits("task").tolist()))
    assert seen[2] == seen[0]
    assert seen[1] != seen[0], "the control: the version between"


def test_what_is_removed_is_dropped_and_gives_names_back(served: Place, llama_bundle: Path, llama_pack: Path) -> None:
    before = served.logits("reviews")
    path = variant(llama_pack, llama_bundle, served.folder / "a.ptpack", 1.0, name="reviews")
    assert served.look() == [("model-loaded", "a.ptpack")]
    assert not np.array_equal(served.logits("reviews"), before), "the control: the pack has the name"
    path.unlink()
    assert served.look() == [("model-removed", "a.ptpack")]
    np.testing.assert_array_equal(served.logits("reviews"), before)
    shutil.rmtree(served.folder / "reviews")
    assert served.look() == [("model-removed", "reviews")]
    assert served.models.names() == []


def test_a_damaged_bundle_is_refused_and_the_old_one_stays(served: Place) -> None:
    engine = served.models.find("reviews").engine
    weights = served.folder / "reviews" / "model.onnx.data"
    data = weights.read_bytes()
    for message, content in (("bytes, need", data[:-100]), ("its sha256 differs", bytes([data[0] ^ 1]) + data[1:])):
        weights.write_bytes(content)
        assert served.look() == [("model-refused", "reviews")]
        assert message in served.reasons[-1]
        assert served.models.find("reviews").engine is engine
    weights.write_bytes(data)
    assert served.look() == [("model-swapped", "reviews")]


def test_a_bundle_that_vanishes_while_it_is_opened(place: Place, llama_bundle: Path) -> None:
    def open_bundle(path: Path) -> Engine:
        shutil.rmtree(path)
        return place.open_bundle(path)

    place.watch = Watch(place.folder, place.models, open_bundle=open_bundle, log=place.log)
    shutil.copytree(llama_bundle, place.folder / "reviews")
    assert place.look() == [("model-refused", "reviews")]
    assert "reviews: no such folder" in place.reasons[0]
    assert place.models.names() == []


def test_an_error_that_nobody_foresaw_refuses_one_entry(place: Place, llama_bundle: Path) -> None:
    def open_bundle(path: Path) -> Engine:
        raise ZeroDivisionError("of a library")

    place.watch = Watch(place.folder, place.models, open_bundle=open_bundle, log=place.log)
    shutil.copytree(llama_bundle, place.folder / "reviews")
    assert place.look() == [("model-refused", "reviews")]
    assert place.reasons[0].endswith("reviews: ZeroDivisionError (of a library); replace it")


def test_what_is_copied_is_opened_once_it_is_whole(place: Place, llama_bundle: Path) -> None:
    copy = place.folder / "reviews"
    copy.mkdir()
    files = ["manifest.json", "config.json", "tokenizer_config.json", "tokenizer.json", "model.onnx.data", "model.onnx"]
    for name in files:
        shutil.copy(llama_bundle / name, copy / name)
        place.watch.look()
        assert place.events == []
    place.watch.look()
    assert place.events == [("model-loaded", "reviews")]


def test_dots_are_ignored_and_links_followed(place: Place, llama_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_bundle, place.folder / ".reviews")
    (place.folder / ".a.ptpack").write_bytes(b"not yet")
    (place.folder / "notes").mkdir()
    (place.folder / "notes.txt").write_text("no bundle")
    (place.folder / "folder.ptpack").mkdir()
    (place.folder / "nowhere").symlink_to(tmp_path / "nowhere")
    assert place.look() == []
    (place.folder / "linked").symlink_to(llama_bundle, target_is_directory=True)
    assert place.look() == [("model-loaded", "linked")]


def test_a_folder_that_cannot_be_read_is_one_line(served: Place) -> None:
    away = served.folder.rename(served.folder.with_name("away"))
    assert served.look() == [("watch-failed", "")]
    assert served.reasons[-1].endswith("(No such file or directory); what was served stays, check the folder")
    assert served.look() == []
    assert served.models.names() == ["reviews"]
    away.rename(served.folder)
    assert served.look() == [("watch-resumed", "watched")]


@pytest.fixture
def watching(served: Place) -> Iterator[Place]:
    served.watch.start()
    yield served
    served.watch.stop()


def test_a_pack_is_served_within_two_seconds(watching: Place, llama_bundle: Path, llama_pack: Path) -> None:
    variant(llama_pack, llama_bundle, watching.folder / "a.ptpack", 1.0, name="task")
    started = time.monotonic()
    while "task" not in watching.models.names():
        assert time.monotonic() - started < 2
        time.sleep(0.01)


def ask(place: Place, stopped: threading.Event, errors: list[Exception], answers: set[float]) -> None:
    """Ask until stopped; note errors, and the probabilities by which versions are known."""
    while not stopped.is_set():
        model = place.models.find("task")
        time.sleep(0.002)  # between finding the model and asking it, swaps happen
        try:
            (prediction,) = model.task.submit(TEXTS[:1]).result().items
            answers.add(round(prediction.probabilities["positive"], 4))
        except Exception as e:
            errors.append(e)


def swap_under_load(place: Place, bundle: Path, pack: Path) -> tuple[list[Exception], set[float], set[float]]:
    """Swap a pack between two versions while four callers ask; returns errors, answers, and those that are right."""
    path = place.folder / "a.ptpack"
    need: set[float] = set()
    for bias in (0.0, 1.0):
        variant(pack, bundle, path, bias, name="task")
        place.look()
        (prediction,) = place.models.find("task").task.predict(TEXTS[:1])
        need.add(round(prediction.probabilities["positive"], 4))
    stopped = threading.Event()
    errors: list[Exception] = []
    answers: set[float] = set()
    callers = [threading.Thread(target=ask, args=(place, stopped, errors, answers)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for n in range(20):
        variant(pack, bundle, path, float(n % 2), name="task")
        assert ("model-swapped", "a.ptpack") in place.look()
        time.sleep(0.01)
    stopped.set()
    for caller in callers:
        caller.join()
    return errors, answers, need


def test_a_swap_answers_all_calls_in_flight(served: Place, llama_bundle: Path, llama_pack: Path) -> None:
    errors, answers, need = swap_under_load(served, llama_bundle, llama_pack)
    assert errors == []
    assert answers == need
    assert len(need) == 2


def test_control_engines_that_are_closed_at_once(served: Place, llama_bundle: Path, llama_pack: Path) -> None:
    class Hasty(Models):
        def put(self, source: str, engine: Engine) -> None:
            before = {model.engine for model in self.snapshot() if model.name in engine.tasks}
            super().put(source, engine)
            for old in before:
                old.close()

    hasty = Hasty()
    hasty.put("reviews", served.models.find("reviews").engine)
    served.models = hasty
    served.watch = Watch(served.folder, hasty, open_bundle=served.open_bundle, log=served.log)
    errors, _, _ = swap_under_load(served, llama_bundle, llama_pack)
    assert errors
    assert all(isinstance(error, EngineError) for error in errors)


def test_an_entry_that_cannot_be_looked_at_stops_no_other(served: Place, llama_bundle: Path, llama_pack: Path) -> None:
    (served.folder / "loop.ptpack").symlink_to("loop.ptpack")
    assert served.look() == [("model-refused", "loop.ptpack")]
    assert "loop.ptpack: cannot be read (" in served.reasons[-1]
    variant(llama_pack, llama_bundle, served.folder / "a.ptpack", 1.0, name="task")
    assert served.look() == [("model-loaded", "a.ptpack")]
    assert served.models.names() == ["reviews", "task"]


def test_the_newest_of_one_name_is_served_after_a_restart_too(
    served: Place, llama_bundle: Path, llama_pack: Path
) -> None:
    variant(llama_pack, llama_bundle, served.folder / "z.ptpack", 1.0, name="task")
    served.look()
    old = served.models.find("task").version
    time.sleep(0.02)  # file times may be that coarse
    variant(llama_pack, llama_bundle, served.folder / "a.ptpack", 2.0, name="task")
    served.look()
    new = served.models.find("task").version
    assert new != old
    restarted = Models()
    Watch(served.folder, restarted, open_bundle=served.open_bundle, log=served.log).look(settled=True)
    assert restarted.find("task").version == new
