from pathlib import Path

import pytest
from tiny import word_piece

from ptexport.runtime.errors import VerbalizerError
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer


def ids(spec: str) -> list[list[int]]:
    words = WordTokenizer(word_piece().to_str())
    return Verbalizer.parse(spec, linear=False).word_ids(words, spaced=True, unknown="[UNK]")


def test_pairs_and_a_file_of_them_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("good = great | good\n\nbad=terrible\n", encoding="utf-8-sig")  # as Windows editors do
    parsed = Verbalizer.parse(str(path), linear=False)
    assert parsed == Verbalizer.parse("good=great|good,bad=terrible", linear=False)
    assert parsed == Verbalizer(labels=("good", "bad"), words=(("great", "good"), ("terrible",)))
    assert Verbalizer.parse("good,bad", linear=True) == Verbalizer(labels=("good", "bad"), words=None)


def test_more_labels_than_a_file_name_has_letters() -> None:
    spec = ",".join(f"label{i}=word{i}" for i in range(500))
    assert len(Verbalizer.parse(spec, linear=False).labels) == 500


@pytest.mark.parametrize(
    ("spec", "linear", "message"),
    [
        ("", False, r"got \[\], need two or more"),
        ("a=great", False, "need two or more different names"),
        ("a=great,a=bad", False, "need two or more different names"),
        ("=great,b=bad", False, "need two or more different names"),
        ("a=great,b=", False, "'b' has no word"),
        ("a=great,b=|", False, "'b' has no word; write b=WORD, or b alone"),
        ("a=great,b=bad", True, "label 'a': has words, and a linear head uses none; give names alone"),
    ],
)
def test_labels_that_cannot_be_parsed(spec: str, linear: bool, message: str) -> None:
    with pytest.raises(VerbalizerError, match=message):
        Verbalizer.parse(spec, linear=linear)


def test_words_become_their_one_token() -> None:
    tokenizer = word_piece()
    assert ids("a=great|good,b=bad") == [[tokenizer.token_to_id("great"), tokenizer.token_to_id("good")],
                                         [tokenizer.token_to_id("bad")]]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a=greats,b=bad", r"its word 'greats' is \d+ tokens .* need 1; similar single tokens: great"),
        ("a=great,b=zzz", r"'zzz' is 3 tokens \(z \+ ##z \+ ##z\) here, need 1; choose a more common word"),
        ("a=great,b=東", r"'東' is 1 tokens \(\[UNK\]\) here, need 1"),
        ("a=great|bad,b=bad", "'bad': both 'a' and 'b' use it; choose different words"),
    ],
)
def test_words_that_cannot_be_read_out(spec: str, message: str) -> None:
    with pytest.raises(VerbalizerError, match=message):
        ids(spec)
