import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptexport.runtime.errors import TemplateError
from ptexport.toolkit.template.template import Piece, Template


def test_pieces_and_spaces() -> None:
    template = Template.parse("[P*2] Review: {text}? It was [MASK]")
    assert template.pieces == (
        Piece(kind="prompt"),
        Piece(kind="prompt"),
        Piece(kind="words", words="Review:", spaced=True),
        Piece(kind="text", spaced=True),
        Piece(kind="words", words="? It was"),
        Piece(kind="mask", spaced=True),
    )
    assert (template.n_prompt, template.fields, template.answer_spaced) == (2, ["text"], True)


@pytest.mark.parametrize(
    ("source", "pieces"),
    [
        ("{text}\nAnswer: [P]", [("text", "", False), ("words", "\nAnswer:", False), ("prompt", "", True)]),
        ("{text}\n\n[P]", [("text", "", False), ("words", "\n\n", False), ("prompt", "", False)]),
        ("  a  {text} [P]\n", [("words", "a ", False), ("text", "", True), ("prompt", "", True)]),
        (
            "[P] {text}  is [P]",
            [("prompt", "", False), ("text", "", True), ("words", " is", True), ("prompt", "", True)],
        ),
    ],
)
def test_one_space_belongs_to_the_right_and_all_else_is_words(source: str, pieces: list[tuple[str, str, bool]]) -> None:
    assert [(piece.kind, piece.words, piece.spaced) for piece in Template.parse(source).pieces] == pieces


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"has 0 \{text\}"),
        ("{text} {text}", r"has 2 \{text\}"),
        ("{text} [MASK] [MASK]", r"has 2 \[MASK\]"),
        ("{text_b} {text}", "precedes"),
        ("{text} [p]", r"unknown placeholder '\[p\]'"),
        ("{text} {label}", "unknown placeholder"),
        ("{text} [P*0]", "need 1 to 1000 virtual tokens"),
        ("[P*1001] {text}", "need 1 to 1000"),
        ("a{text}", "a letter touches"),
        ("{text}s", "a letter touches"),
        ("{text} ]", "a lone"),
    ],
)
def test_invalid_templates_die_when_parsed(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Template.parse(source)


@given(st.text() | st.lists(st.sampled_from(["[P]", "[P*3]", "{text}", "{text_b}", "[MASK]", " ", "a"])).map("".join))
def test_anything_parses_or_is_a_template_error(source: str) -> None:
    try:
        template = Template.parse(source)
    except TemplateError:
        return
    assert template.has("text")
