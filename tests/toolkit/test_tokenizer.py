"""The compiled tokenizer, through `tokenizers` and through AutoTokenizer, on bundles as they are shipped."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ptexport.runtime import Engine
from ptexport.runtime.errors import TemplateError
from ptexport.toolkit.run import Run
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, compile_template

TEXTS = ["the film was great", "[MASK]", "", "slow " * 5000, "Владивосток", "[P 0] <mask> <s>"]


def compiled(run_folder: Path, template: str) -> tuple[CompiledTemplate, Tokenizer]:
    run = Run.read(run_folder)
    slot = run.config.read == "mask"
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
        ("llama_run", "{text}", "nothing beside texts"),
        ("llama_run", "[P*48] {text}", "leaving none for text"),
    ],
)
def test_templates_that_do_not_fit(fixture: str, template: str, message: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(TemplateError, match=message):
        compiled(request.getfixturevalue(fixture), template)


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
    script = Path(__file__).parents[2] / "examples" / "bare_predict.py"
    done = subprocess.run([sys.executable, script, bundle, *TEXTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [prediction.label for prediction in Engine.open(bundle).predict(TEXTS)]


_LOADED: dict[Path, tuple[Tokenizer, AutoTokenizer]] = {}


def loaded(bundle: Path) -> tuple[Tokenizer, AutoTokenizer]:
    if bundle not in _LOADED:
        _LOADED[bundle] = Tokenizer.from_file(str(bundle / "tokenizer.json")), AutoTokenizer.from_pretrained(bundle)
    return _LOADED[bundle]
