"""Texts of a bench: as long as asked for, never the same, and only for bundles that take one."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from tokenizers import Tokenizer

from ptexport.runtime.bundle.folder import TOKENIZER, Bundle
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.texts import PlainTexts


@pytest.mark.parametrize("which", ["llama_bundle", "bert_bundle"])
def test_texts_have_as_many_tokens_as_asked_for(which: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(which))
    plain = PlainTexts.of(bundle)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    longest = plain.make(2, plain.longest, "longest")
    for texts, tokens in ((plain.make(3, 6, "a"), 6), (longest, plain.longest)):
        assert {len(tokenizer.encode(text)) for text in texts} == {plain.n_fixed + tokens}
    assert len(tokenizer.encode(f"{longest[0]} {plain.words[0]}")) == plain.n_fixed + plain.longest, "truncated"
    assert plain.make(1, 20, "a") == plain.make(1, 20, "a") != plain.make(1, 20, "b")
    assert len(set(plain.make(2, 20, "a"))) == 2


def test_a_bundle_of_two_texts_is_refused(llama_bundle: Path) -> None:
    bundle = Bundle.open(llama_bundle)
    pairs = replace(bundle, manifest=structs.replace(bundle.manifest, fields=["text", "text_b"]))
    with pytest.raises(BenchError, match=r"takes text and text_b, need one text, .* bench quality on rows of your own"):
        PlainTexts.of(pairs)
