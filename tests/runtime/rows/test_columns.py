"""Columns as people name them: formats, names of labels, columns that are kept; and what is refused."""

import pytest

from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.columns import Columns

RECORD = {"title": "Oil", "description": "Prices rose", "class": 2, "id": 7, "price": 1.5, "empty": None}
RECORD |= {"a,b": "comma", " c ": "spaces", "blank": " "}


def parse(
    columns: str | None = None, text: str | None = None, text_b: str | None = None, names: str | None = None
) -> Columns:
    return Columns.parse(columns, text, text_b, names)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (parse("text=title,label=class"), ("Oil", None, "2")),
        (parse("text=title, text_b=description, label=class"), ("Oil", "Prices rose", "2")),
        (parse("label=class", "{title}: {description} ({price})"), ("Oil: Prices rose (1.5)", None, "2")),
        (parse("text=title", None, "{{{id}}}"), ("Oil", "{7}", None)),
        (parse("text=title,label=class", names="world,sports,business"), ("Oil", None, "business")),
        (parse("text=title,label=class", names="1=world, 2=sports"), ("Oil", None, "sports")),
        (parse(None, "{a,b}", "{ c }"), ("comma", "spaces", None)),
    ],
)
def test_parts(columns: Columns, expected: tuple[str, str | None, str | None]) -> None:
    row = columns.row(RECORD, "here")
    assert (row.text, row.text_b, row.label, row.kept) == (*expected, {})
    assert Columns.parse(*columns.options().values()) == columns


def test_blank_and_unpublished_labels_are_none() -> None:
    for columns in (parse("text=title,label=blank"), parse("text=title,label=blank", names="a,b")):
        assert columns.row(RECORD, "here").label is None
    assert parse("text=title,label=class", names="a,b,c").row({**RECORD, "class": -1}, "here").label is None


def test_a_label_may_be_a_name_already() -> None:
    assert parse("text=title,label=title", names="1=Oil").row(RECORD, "here").label == "Oil"


def test_rows_to_predict_need_no_label() -> None:
    for columns in (parse("text=title,label=class", names="a,b"), parse("text=title,label=gone")):
        assert columns.without_label().row(RECORD, "here").label is None
        with pytest.raises(DataError):
            columns.row(RECORD, "here")


def test_options_over_what_a_bundle_reads() -> None:
    base = parse("text=title,label=class", names="a,b,c")
    assert Columns.parse("label=id", None, None, None, base=base) == parse("text=title,label=id", names="a,b,c")
    assert Columns.parse(None, None, None, "x,y,z", base=base).row(RECORD, "here").label == "z"


def test_kept_columns() -> None:
    columns = parse("text=title")
    assert columns.row(RECORD, "here", ("id", "class")).kept == {"id": 7, "class": 2}
    assert columns.row(RECORD, "here", None).kept == RECORD
    with pytest.raises(DataError, match=r"here: no column 'date' to keep, got \['title', .*\]; correct --keep"):
        columns.row(RECORD, "here", ("date",))
    with pytest.raises(DataError, match="'half' cannot be kept"):
        columns.row({**RECORD, "half": {"a": "\ud800"}}, "here", ("half",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (parse(), "no column 'text', got .*; say which one it is with --columns text=NAME; a number, if"),
        (parse("text=titel,label=class"), "no column 'titel', .*, did you mean 'title'; say .* --columns text=title"),
        (parse("label=class", "{titel}. {id}"), "did you mean 'title'; correct --text-format '{titel}. {id}'"),
        (parse("text=title,text_b=body"), "no column 'body', got .*; say which one it is with --columns text_b=NAME"),
        (parse("text=empty"), "'empty' is null, need a string"),
        (
            parse("text=title,label=class", names="world,sports"),
            "label '2' has no name in --label-names 0=world,1=sports; add 2=NAME",
        ),
    ],
)
def test_rows_that_do_not_fit(columns: Columns, message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns.row(RECORD, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "title"}, "columns 'title': need PART=NAME,PART=NAME with each part once, of text, text_b, label"),
        ({"columns": "body=title"}, "need PART=NAME"),
        ({"columns": "text="}, "need PART=NAME"),
        ({"columns": "text=a,text=b"}, "with each part once"),
        ({"columns": "text=a", "text": "{b}"}, "got text and --text-format; give one of the two"),
        ({"columns": "text_b=a", "text_b": "{b}"}, "got text_b and --text-b-format; give one"),
        ({"text": "title"}, "format 'title': names no column; write a column's name in braces"),
        ({"text": "{title"}, "format '{title': .*; write columns as {NAME}"),
        ({"text": "{}"}, "need plain columns"),
        ({"text": "{title:>10}"}, "need plain columns, {NAME}; leave out what follows a name"),
        ({"names": "a,b=c"}, "label-names 'a,b=c': need VALUE=NAME,VALUE=NAME; or NAME,NAME for 0, 1"),
        ({"names": "1=a,1=b"}, "label-names '1=a,1=b'"),
        ({"names": "a,"}, "label-names 'a,'"),
        ({"names": "1:a,2:b"}, "need VALUE=NAME"),
    ],
)
def test_options_that_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(**options)
