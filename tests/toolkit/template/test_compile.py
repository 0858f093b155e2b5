"""The compiled tokenizer, through `tokenizers` and through AutoTokenizer, on bundles as they are shipped."""

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import byte_level_bpe, unigram, word_piece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ptexport.runtime import Engine
from ptexport.runtime.errors import ModelError, TemplateError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template, count_split_differently
from ptexport.toolkit.template.template import Template

TEXTS = ["the film was great", "[MASK]", "", "slow " * 5000, "Владивосток", "[P 0] <mask> <s>"]


def compiled(run_folder: Path, template: str) -> tuple[CompiledTemplate, Tokenizer]:
    run = Run.read(run_folder)
    slot = run.config.pooling == "mask"
    parsed = Template.parse(template)
    made = compile_template(parsed, run.config.backbone, run.tokenizer_json, mask_slot=slot, max_length=48)
    return made, Tokenizer.from_str(run.tokenizer_json)


def ids(made: CompiledTemplate, text: str, n_folded: int = 0) -> list[int]:
    return list(Tokenizer.from_str(made.tokenizer_json(n_folded=n_folded)).encode(text).ids)


@pytest.mark.parametrize("text", ["the film", "a very  slow story", "Ünïcode 東京!"])
def test_byte_level_ids_are_those_of_the_whole_string(llama_run: Path, text: str) -> None:
    made, plain = compiled(llama_run, "the review: {text} is it good")
    assert ids(made, f"  {text} ") == plain.encode(f"the review: {text} is it good", add_special_tokens=False).ids


def test_prompt_ids_stand_where_the_template_has_them(llama_run: Path) -> None:
    made, plain = compiled(llama_run, "[P*2] a {text} [P]")
    words = [plain.token_to_id("Ġa"), plain.token_to_id("Ġfilm")]
    assert ids(made, "film") == [made.vocab, made.vocab + 1, *words, made.vocab + 2]
    assert ids(made, "film", n_folded=3) == [words[1], made.vocab + 2]


def test_what_the_backbone_adds_surrounds_the_template(bert_run: Path) -> None:
    made, plain = compiled(bert_run, "[P] {text} [MASK]")
    assert ids(made, "film") == [2, made.vocab, plain.token_to_id("film"), made.vocab + 1, 3]
    made, _ = compiled(bert_run, "[P] [CLS] {text} [MASK]")
    assert ids(made, "film") == [made.vocab, 2, plain.token_to_id("film"), made.vocab + 1]


@pytest.mark.parametrize(
    ("fixture", "template", "message"),
    [
        ("bert_run", "[P] {text}", r"add \[MASK\]"),
        ("llama_run", "{text} [MASK] [P]", r"put \[MASK\] last"),
        ("llama_run", "[SEP] {text}", "has no such token"),
        ("llama_run", "[P*48] {text}", "leaving none for text"),
    ],
)
def test_templates_that_do_not_fit(fixture: str, template: str, message: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(TemplateError, match=message):
        compiled(request.getfixturevalue(fixture), template)


def facts(tokenizer: Tokenizer, *, vocab: int | None = None, causal: bool = True) -> BackboneFacts:
    return BackboneFacts(
        name="tiny",
        revision=None,
        licence=None,
        fingerprint="",
        config_sha256="",
        tokenizer_sha256="",
        model_type="tiny",
        causal=causal,
        vocab=vocab or tokenizer.get_vocab_size() + 4,
        embedding_width=32,
        max_positions=64,
        token_types=not causal,
        tokens={"mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"} if not causal else {},
    )


def compile_with(tokenizer: Tokenizer, template: str, **more: Any) -> CompiledTemplate:
    given = {"mask_slot": False, "max_length": 48, **more}
    return compile_template(Template.parse(template), given.pop("facts", facts(tokenizer)), tokenizer.to_str(), **given)


def with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """As Qwen and Llama 3 have them: beside the model's vocabulary, numbered from its size on."""
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    return tokenizer


@pytest.mark.parametrize("make", [lambda: with_added_tokens(byte_level_bpe()), unigram])
def test_every_token_keeps_its_id(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    made = compile_with(tokenizer, "[P*2] a {text} [P]")
    whole = Tokenizer.from_str(made.tokenizer_json())
    assert tokenizer.get_vocab().items() <= whole.get_vocab().items()
    for text in ("the film", "XYZ the ßtory"):
        plain = tokenizer.encode(f" a {text}", add_special_tokens=False).ids
        assert whole.encode(text).ids == [made.vocab, made.vocab + 1, *plain, made.vocab + 2]
    # Texts may spell the backbone's own added tokens, as with any tokenizer; the spaces around those are dropped.
    added = tokenizer.get_added_tokens_decoder()
    ids_ = whole.encode("film " + " ".join(token.content for token in added.values())).ids
    assert [id_ for id_ in ids_ if id_ in added] == list(added)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text()
    | st.lists(st.sampled_from(["[P 0]", "[P", "0]", "▁", " ", "<mask>", "[unused 72]", "a"])).map("".join)
)
def test_no_text_makes_a_prompt_id_with_unigram_either(text: str) -> None:
    made, tokenizer = unigram_compiled()
    assert [id_ for id_ in tokenizer.encode(text).ids if id_ >= made.vocab] == [made.vocab]


@functools.cache
def unigram_compiled() -> tuple[CompiledTemplate, Tokenizer]:
    made = compile_with(unigram(), "{text} it was [P]")
    return made, Tokenizer.from_str(made.tokenizer_json())


def test_a_tokenizer_that_knows_more_than_the_table() -> None:
    tokenizer = with_added_tokens(byte_level_bpe())
    last = tokenizer.get_vocab_size() - 1
    with pytest.raises(
        ModelError, match=rf"tiny: its tokenizer has ids up to {last}, its embedding table has {last} rows"
    ):
        compile_with(tokenizer, "[P] {text}", facts=facts(tokenizer, vocab=last))


def test_pairs_by_rules_of_their_own() -> None:
    tokenizer = byte_level_bpe()
    made = Tokenizer.from_str(compile_with(tokenizer, "the {text} and {text_b} [P]").tokenizer_json())
    assert made.encode("film", "story").ids[:-1] == tokenizer.encode("the film and story").ids
    for template in ("{text} and {text_b} [P]", "the {text} ({text_b}) [P]"):
        with pytest.raises(TemplateError, match="has a space before one text and none before the other"):
            compile_with(tokenizer, template)
    assert compile_with(word_piece(), "{text} and {text_b} [P]", facts=facts(word_piece(), causal=False))


@pytest.mark.parametrize(
    ("template", "type_ids"),
    [
        ("[CLS] {text} [SEP] it {text_b} [P] [SEP]", [0, 0, 0, 1, 1, 1, 1]),
        ("[CLS] {text} it {text_b} [SEP] [P]", [0, 0, 0, 0, 0, 0]),
        ("[CLS] {text} [SEP] [P] [SEP]", [0, 0, 0, 0, 0]),
    ],
)
def test_token_types(template: str, type_ids: list[int]) -> None:
    """0 up to and with the first [SEP] between the texts, 1 after; 0 where there is none."""
    tokenizer = word_piece()
    made = Tokenizer.from_str(compile_with(tokenizer, template, facts=facts(tokenizer, causal=False)).tokenizer_json())
    texts = ["film", "story"] if "{text_b}" in template else ["film"]
    assert made.encode(*texts).type_ids == type_ids


def test_truncation_leaves_the_template_whole() -> None:
    tokenizer = byte_level_bpe()
    single = Tokenizer.from_str(compile_with(tokenizer, "[P*2] a {text} it was [P]", max_length=12).tokenizer_json())
    ids, whole = single.encode("slow " * 50).ids, single.encode("slow " * 6).ids
    assert (len(ids), ids) == (12, whole)
    for truncate, kept in (("longest", (6, 3)), ("text", (3, 6))):
        pair = compile_with(tokenizer, "[P] a {text} and {text_b} [P]", max_length=13, truncate=truncate)
        encoding = Tokenizer.from_str(pair.tokenizer_json()).encode("slow " * 50, "fast " * 6)
        assert len(encoding.ids) == 13
        assert tuple(encoding.sequence_ids.count(sequence) for sequence in (0, 1)) in (kept, kept[::-1], (5, 4), (4, 5))
    assert encoding.sequence_ids.count(1) == 6


@pytest.mark.parametrize("separator", ["\n", "\n\n", "  "])
def test_line_breaks_are_kept(separator: str) -> None:
    tokenizer = byte_level_bpe()
    made = Tokenizer.from_str(compile_with(tokenizer, f"the {{text}}{separator}Answer: it").tokenizer_json())
    assert made.encode("film").ids == tokenizer.encode(f"the film{separator}Answer: it").ids


@pytest.mark.parametrize(
    ("template", "texts", "count"),
    [
        ("the review: {text} is it good", ["the film", "slow", ""], 0),
        ("{text}d it", ["slow", "an"], 1),  # "and" is one token
        ("{text}d it", [], 0),
        ("[P] {text} [P]d", ["an"], 0),  # a virtual token between them: nothing can join
    ],
)
def test_rows_that_would_be_other_tokens_as_one_string(
    llama_run: Path, template: str, texts: list[str], count: int
) -> None:
    """Templates that glue letters are refused when parsed; here they stand for any characters that join."""
    pieces = Template.parse(template.replace("}d", "}?").replace("]d", "]?")).pieces
    joined = tuple(dataclasses.replace(p, words=p.words.replace("?", "d")) for p in pieces)
    rows = [Row(where="", text=text) for text in texts]
    parsed = Template(source=template, pieces=joined)
    assert count_split_differently(parsed, Run.read(llama_run).tokenizer_json, rows) == count


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text()
    | st.lists(st.sampled_from(["[P 0]", "[P 1]", "[P", "0]", " ", "[MASK]", "<mask>", "Ġ"])).map("".join)
)
@pytest.mark.parametrize("fixture", ["llama", "bert"])
def test_no_text_makes_a_prompt_id(fixture: str, text: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(f"{fixture}_bundle")
    vocab = Run.read(request.getfixturevalue(f"{fixture}_run")).config.backbone.vocab
    plain, auto = loaded(bundle)
    expected = [id_ for id_ in plain.encode("").ids if id_ >= vocab]
    assert [id_ for id_ in plain.encode(text).ids if id_ >= vocab] == expected
    assert [id_ for id_ in auto(text, truncation=True)["input_ids"] if id_ >= vocab] == expected


@pytest.mark.parametrize("fixture", ["llama_bundle", "bert_bundle"])
@pytest.mark.parametrize("text", TEXTS)
def test_auto_tokenizer_gives_the_same_ids(fixture: str, text: str, request: pytest.FixtureRequest) -> None:
    plain, auto = loaded(request.getfixturevalue(fixture))
    assert auto(text, truncation=True)["input_ids"] == plain.encode(text).ids


@pytest.mark.parametrize("fixture", ["llama_bundle", "bert_bundle"])
def test_the_bare_script_gives_the_same_labels(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    script = Path(__file__).parents[3] / "examples" / "bare_predict.py"
    done = subprocess.run([sys.executable, script, bundle, *TEXTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [prediction.label for prediction in Engine.open(bundle).predict(TEXTS)]


_LOADED: dict[Path, tuple[Tokenizer, AutoTokenizer]] = {}


def loaded(bundle: Path) -> tuple[Tokenizer, AutoTokenizer]:
    if bundle not in _LOADED:
        _LOADED[bundle] = Tokenizer.from_file(str(bundle / "tokenizer.json")), AutoTokenizer.from_pretrained(bundle)
    return _LOADED[bundle]
