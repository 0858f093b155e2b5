"""Synthetic texts have the requested length, differ by seed, and are for bundles of one task with one text."""

from dataclasses import replace
from pathlib import Path

import pytest
from commands import ptexport
from msgspec import structs
from tokenizers import Tokenizer

from ptexport.runtime.bundle.folder import TOKENIZER, Bundle
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.synthetic_texts import SyntheticTexts

BOTH = Path(__file__).parents[2] / "golden" / "format-1" / "both"


@pytest.mark.parametrize("which", ["llama_bundle", "bert_bundle"])
def test_texts_have_the_requested_number_of_tokens(which: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(which))
    synthetic = SyntheticTexts.of(bundle)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    longest = synthetic.make(2, synthetic.longest, "longest")
    for texts, tokens in ((synthetic.make(3, 6, "a"), 6), (longest, synthetic.longest)):
        assert {len(tokenizer.encode(text)) for text in texts} == {synthetic.n_fixed + tokens}
    assert len(tokenizer.encode(f"{longest[0]} {synthetic.words[0]}")) == synthetic.n_fixed + synthetic.longest, (
        "truncated"
    )
    assert synthetic.make(1, 20, "a") == synthetic.make(1, 20, "a") != synthetic.make(1, 20, "b")
    assert len(set(synthetic.make(2, 20, "a"))) == 2


def test_a_bundle_of_two_texts_is_refused(llama_bundle: Path) -> None:
    bundle = Bundle.open(llama_bundle)
    task = structs.replace(bundle.manifest.task, fields=["text", "text_b"])
    pairs = replace(bundle, manifest=structs.replace(bundle.manifest, tasks=[task]))
    with pytest.raises(BenchError, match=r"takes text and text_b, need one text; .* quality' on rows of your own"):
        SyntheticTexts.of(pairs)


@pytest.mark.parametrize("command", ["speed", "profile", "serve", "quality"])
def test_benches_refuse_a_bundle_of_several_tasks(command: str, rows_file: Path, tmp_path: Path) -> None:
    options = ("--data", rows_file) if command == "quality" else ()
    done = ptexport("bench", command, BOTH, "--out", tmp_path / "report", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has the tasks tone, mood, need one task; measure a bundle of one of them" in done.stderr
