from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import TOKENIZER
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import BundleError, DataError

TEXTS = ["the film was great", "", "slow", "the story was very very slow and dull " * 3, "Владивосток"]


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
def test_predict_keeps_the_order_and_the_labels(bundle: str, request: pytest.FixtureRequest) -> None:
    engine = Engine.open(request.getfixturevalue(bundle))
    together = engine.predict(TEXTS)
    assert [prediction.label for prediction in together] == [engine.predict([text])[0].label for text in TEXTS]
    for prediction in together:
        assert list(prediction.probabilities) == engine.labels == ["positive", "negative"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert prediction.label == max(prediction.probabilities, key=lambda label: prediction.probabilities[label])
    assert len({prediction.probabilities["positive"] for prediction in together}) == len(TEXTS)


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
def test_every_text_gets_its_own_answer_in_whatever_batch(bundle: str, request: pytest.FixtureRequest) -> None:
    """More rows than a batch holds, of lengths that are sorted into other places."""
    engine = Engine.open(request.getfixturevalue(bundle))
    texts = [" ".join(["slow", "bright", "it"][: 1 + i % 3] * (1 + 7 * i % 11)) for i in range(150)]
    alone = np.concatenate([engine.logits([text]) for text in texts])
    assert len({round(float(row[0]), 3) for row in alone}) > 20
    np.testing.assert_allclose(engine.logits(texts), alone, atol=1e-4)


def test_no_texts_and_one_string(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle)
    assert engine.predict([]) == []
    with pytest.raises(DataError, match=r"got one string, need a list of texts; write \[text\]"):
        engine.predict("slow")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text 1: got NoneType, need a string"),
        (float("nan"), "text 1: got float, need a string"),
        (b"slow", "text 1: got bytes, need a string"),
        (["slow"], "text 1: got list, need a string"),
        (("slow", "bright"), "text 1: got 2 strings, need a string"),
        ("half \ud800", "text 1: holds half of a surrogate pair, need Unicode"),
    ],
)
def test_what_is_no_text(text: Any, message: str, llama_bundle: Path) -> None:
    with pytest.raises(DataError, match=message):
        Engine.open(llama_bundle).predict(["slow", text])


def pair_encoder(bundle: Path, **truncation: Any) -> TextEncoder:
    tokenizer = Tokenizer.from_file(str(bundle / TOKENIZER))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer.enable_truncation(**truncation)
    return TextEncoder(tokenizer, fields=["text", "text_b"])


@pytest.mark.parametrize("text", ["slow", ("slow",), ("a", "b", "c"), ("a", None), None])
def test_what_is_no_pair(text: Any, llama_bundle: Path) -> None:
    with pytest.raises(DataError, match=r"text 0: got .*, need two strings \(text and text_b\)"):
        pair_encoder(llama_bundle, max_length=10).encode([text])


def test_a_second_text_that_leaves_no_room(llama_bundle: Path) -> None:
    encoder = pair_encoder(llama_bundle, max_length=10, strategy="only_first")
    assert [len(encoding) for encoding in encoder.encode([("slow " * 30, "it"), ("slow", "it")])] == [10, 2]
    with pytest.raises(DataError, match=r"text 1: cannot be tokenised \(.*too short.*\); shorten it"):
        encoder.encode([("slow", "it"), ("slow", "it " * 30)])


def test_what_is_no_list_of_texts_is_refused(llama_bundle: Path) -> None:
    """A generator would be read by what looks at its texts first, and a row of JSON be answered by its keys."""
    engine = Engine.open(llama_bundle)
    for texts, got in ((iter(["slow"]), "list_iterator"), ({"text": "slow"}, "dict"), (b"slow", "byt"), (None, "None")):
        with pytest.raises(DataError, match=f"texts: got {got}.*, need a list of texts"):
            engine.predict(texts)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="texts: got dict, need a list"):
        engine.predict_iter({"text": "slow"})
    for top_k in ("2", 1.5, 0):
        with pytest.raises(DataError, match="need a whole number of at least 1"):
            engine.predict(["slow"], top_k=top_k)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"got a file, need the folder of a bundle; give .*reviews"):
        Engine.open(llama_bundle / "model.onnx")
