"""Models that come and go while requests ask for them."""

import gc
import threading
import weakref
from pathlib import Path

import pytest

from ptexport.runtime import Engine
from ptexport.runtime.errors import UnknownModelError
from ptexport.runtime.serving.models import Model, Models

GOLDEN = Path(__file__).parents[2] / "golden" / "format-2"


def open_reviews() -> Engine:
    return Engine.open(GOLDEN / "reviews")


def test_a_bundle_of_several_tasks_is_a_model_per_task() -> None:
    models, engine = Models(), Engine.open(GOLDEN / "both")
    models.put("both", engine)
    assert models.names() == ["tone", "mood"]
    model = models.find("mood")
    assert (model.task, model.engine) == (engine.task("mood"), engine)
    assert model.version == engine.manifest.digest[:12]
    assert models.find("mood", model.version) is model
    assert models.all() == [models.find("tone"), model]


def test_one_model_is_not_all() -> None:
    models = Models()
    assert models.all() is None
    models.put("reviews", open_reviews())
    assert models.all() is None
    models.put("both", Engine.open(GOLDEN / "both"))
    assert [model.name for model in models.all() or []] == ["reviews", "tone", "mood"]


def test_a_name_or_version_that_is_not_served() -> None:
    models = Models()
    with pytest.raises(UnknownModelError, match="model: got an unknown name, need none, since no model is loaded"):
        models.find("tone")
    models.put("both", Engine.open(GOLDEN / "both"))
    with pytest.raises(UnknownModelError, match="model: got an unknown name, need 'tone' or 'mood'; correct it"):
        models.find("secret")
    with pytest.raises(
        UnknownModelError, match=f"version: got one that is not served, need '{models.find('tone').version}'"
    ):
        models.find("tone", "secret")


def test_the_source_that_was_put_last_has_a_name_and_gives_it_back() -> None:
    models, engines = Models(), [open_reviews() for _ in range(3)]
    models.put("a", engines[0])
    models.put("b", engines[1])
    assert models.find("reviews").engine is engines[1]
    models.put("a", engines[2])
    assert models.find("reviews").engine is engines[2]
    models.drop("a")
    assert models.find("reviews").engine is engines[1]
    models.drop("b")
    models.drop("b")
    assert models.names() == []


def test_an_engine_lives_until_its_last_request() -> None:
    models = Models()
    models.put("a", open_reviews())
    model = models.find("reviews")
    seen = weakref.ref(model.engine)
    models.put("a", open_reviews())
    assert models.find("reviews").engine is not seen()
    assert len(model.task.predict(["a story"])) == 1
    del model
    gc.collect()
    assert seen() is None


def test_readers_never_see_half_a_swap() -> None:
    """Both tasks of a source come and go together, and always with their own engine."""
    models, engines = Models(), [Engine.open(GOLDEN / "both") for _ in range(2)]
    models.put("a", engines[0])
    stopped, looks = threading.Event(), [0]
    wrong: list[list[Model]] = []

    def read() -> None:
        while not stopped.is_set():
            seen = models.snapshot()
            looks[0] += 1
            if [model.name for model in seen] != ["tone", "mood"] or len({model.engine for model in seen}) != 1:
                wrong.append(seen)
            if any(model.task is not model.engine.tasks[model.name] for model in seen):
                wrong.append(seen)
            models.find("tone")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for n in range(300):
        models.put("a", engines[n % 2])
        models.put("b", engines[n % 2])
        models.drop("b")
    stopped.set()
    for reader in readers:
        reader.join()
    assert looks[0] > 0
    assert wrong == []
