"""Shapes of batches: what the engine makes fits them, and padding to them changes no answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.batching import batches, batches_for
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import DataError
from ptexport.runtime.ort import graph
from ptexport.runtime.ort.batch_shapes import CUDA_BATCH_ROWS, MAX_BATCH_ROWS, MAX_BATCH_TOKENS, Buckets
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import CPU, CUDA, TENSORRT, Provider

TEXTS = ["the film was bright", "dull", "a slow story and a dull review", "Asia " * 20]


def test_lengths_grow_by_half_at_most() -> None:
    assert Buckets.up_to(256).lengths == (16, 24, 32, 48, 64, 96, 128, 192, 256)
    assert Buckets.up_to(100).lengths == (16, 24, 32, 48, 64, 96, 100)
    assert Buckets.up_to(16).lengths == (16,)
    assert Buckets.up_to(5).lengths == (5,)


@given(st.integers(1, 2048), st.sampled_from([MAX_BATCH_ROWS, CUDA_BATCH_ROWS]), st.data())
@settings(max_examples=100)
def test_every_batch_of_the_engine_has_a_shape_within_the_profile(
    longest: int, most_rows: int, data: st.DataObject
) -> None:
    buckets = replace(Buckets.up_to(longest), most_rows=most_rows)
    least, usual, most = buckets.profile()
    assert least <= most
    assert all(low <= middle <= high for low, middle, high in zip(least, usual, most, strict=True))
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=300))
    shapes = set(buckets.shapes())
    for batch in batches(lengths, most_rows=most_rows, most_tokens=MAX_BATCH_TOKENS):
        tokens = max(lengths[row] for row in batch)
        shape = buckets.fit(len(batch), tokens)
        assert shape in shapes, "warmed up"
        assert least[0] <= len(batch) <= shape[0] <= most[0]
        assert tokens <= shape[1] <= most[1]
        assert shape[0] < 2 * len(batch) + 1
        assert shape[1] <= max(16, 1.5 * tokens)


@pytest.mark.parametrize("shape", [(33, 8), (1, 65), (0, 8), (1, 0)])
def test_what_no_shape_holds_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"got {shape[0]} rows of {shape[1]} tokens, need at most 32 x 64"):
        Buckets.up_to(64).fit(*shape)


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
def test_padding_to_shapes_changes_no_answer(bundle: str, request: pytest.FixtureRequest) -> None:
    """What a GPU runs, on the CPU: the same buffers, shapes and numbers of recordings."""
    path: Path = request.getfixturevalue(bundle)
    engine = Engine.open(path, provider="cpu")
    encoders, loaded, _ = engine._state.get()
    (encoder,) = encoders.of_task
    arrays = OnnxFile.parse((path / "model.onnx").read_bytes(), "").arrays
    padding = Graph(
        loaded.session,
        arrays,
        provider=Provider(cuda_graph=True),
        buckets=Buckets.up_to(engine.manifest.task.max_length),
    )
    for _ in range(3):  # the first run of a shape finds the output's, the others write there
        for some in (TEXTS[:1], TEXTS[:3], TEXTS, TEXTS[1:2]):
            ids = encoder.pad(encoder.encode(some))
            got = padding.run(ids)
            assert got.shape == (len(some), 2)
            np.testing.assert_allclose(got, loaded.run(ids), atol=2e-5)
    ids = encoder.pad(encoder.encode(TEXTS[:1]))
    seen = ids | {"attention_mask": np.ones_like(ids["attention_mask"])}
    wide = {name: np.pad(values, ((0, 0), (0, 16))) for name, values in seen.items()}
    wide["attention_mask"][:] = 1
    assert np.abs(padding.run(wide) - loaded.run(ids)).max() > 1e-3, "the control: padding that is not masked"


@pytest.mark.parametrize(("name", "rows"), [(CPU, 32), (CUDA, 256), (TENSORRT, 32)])
def test_cuda_runs_more_rows_at_once(name: str, rows: int, llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_cpu(model: str, options: Any, _: Provider) -> Any:
        return onnxruntime.InferenceSession(model, options, providers=[CPU])

    monkeypatch.setattr(graph, "open_session", on_the_cpu)
    opened = Graph.open(llama_bundle / "model.onnx", provider=Provider(name=name), threads=1, buckets=Buckets.up_to(16))
    assert opened.batch_rows == rows
    assert {len(batch) for batch in batches_for(opened, [5] * 1024)} == {min(rows, opened.batch_tokens // 5)}


def test_every_shape_is_warmed_up(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle, provider="cpu")
    engine.warm_up()  # none on the CPU
    loaded = engine._state.get().graph
    arrays = OnnxFile.parse((llama_bundle / "model.onnx").read_bytes(), "").arrays
    padding = Graph(loaded.session, arrays, buckets=Buckets.up_to(24))
    padding.warm_up()
    assert (
        {shape for shape, _ in padding._pool._free}
        == set(Buckets.up_to(24).shapes())
        == {(rows, tokens) for rows in (1, 2, 4, 8, 16, MAX_BATCH_ROWS) for tokens in (16, 24)}
    )


def test_an_answer_is_not_overwritten_by_the_next(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle, provider="cpu")
    first = engine.logits(TEXTS[:1])
    kept = first.copy()
    engine.logits(["a dull story was"])
    np.testing.assert_array_equal(first, kept)


def test_few_buffers_are_kept_of_batches_as_they_come(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle, provider="cpu")
    for words in range(1, 30):
        engine.logits(["a " * words])
    assert len(engine._state.get().graph._pool._free) == 8
