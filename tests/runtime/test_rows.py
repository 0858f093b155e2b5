"""Files as people have them: byte order marks, Windows line ends, quotes; and what is refused with its line."""

from pathlib import Path

import pytest

from ptexport.runtime.errors import DataError
from ptexport.runtime.rows import read_rows

BOM = "\ufeff".encode()


def rows_of(path: Path, content: bytes) -> list[tuple[str, str | None, str | None]]:
    path.write_bytes(content)
    return [(row.text, row.text_b, row.label) for row in read_rows(path)]


@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_csv(bom: bytes, end: bytes, tmp_path: Path) -> None:
    lines = [b"text,text_b,label,other", b'"a, ""b""",c,yes,1', "é 東,,no,2".encode(), b""]
    assert rows_of(tmp_path / "rows.csv", bom + end.join(lines)) == [('a, "b"', "c", "yes"), ("é 東", "", "no")]


@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_jsonl(bom: bytes, end: bytes, tmp_path: Path) -> None:
    lines = [b'{"text": "a", "label": "yes", "other": [1]}', b"", b'{"text": "", "label": 3}', b'{"text": "c"}']
    expected = [("a", None, "yes"), ("", None, "3"), ("c", None, None)]
    assert rows_of(tmp_path / "rows.jsonl", bom + end.join(lines)) == expected


def test_a_long_text(tmp_path: Path) -> None:
    assert len(rows_of(tmp_path / "rows.csv", b"text\n" + b"a" * 1_000_000 + b"\n")[0][0]) == 1_000_000


def test_a_quoted_line_break_keeps_the_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"two\nlines",yes\nb,no\n', encoding="utf-8")
    assert [(row.where, row.text) for row in read_rows(path)] == [
        ("rows.csv line 3", "two\nlines"),
        ("rows.csv line 4", "b"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "a.jsonl line 2: not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1: got list, need an object"),
        ("a.jsonl", b'{"txt": "a"}\n', r"no column 'text', got \['txt'\]; rename"),
        ("a.jsonl", b'{"text": 3}\n', "'text' is 3, need a string"),
        ("a.jsonl", b'{"text": null}\n', "'text' is null, need a string"),
        ("a.jsonl", b'{"text": "a", "text_b": [1]}\n', r"'text_b' is \[1\], need a string"),
        ("a.jsonl", b'{"text": "a", "label": {}}\n', "'label' is {}, need a name"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"text": "a", "id": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: 'text' holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("a.csv", b"text,label\na,b,c\n", "line 2: got more or fewer fields than the header, need 2"),
        ("a.csv", b"text,label\na\n", "line 2: got more or fewer fields"),
        ("a.csv", b'text,label\n"a"b,c\n', "not CSV"),
        ("a.csv", b"words,label\na,b\n", "no column 'text'"),
        ("a.csv", b"text,label,text\na,b,c\n", r"line 1: got columns \['text', 'label', 'text'\], need each name once"),
    ],
)
def test_what_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, content)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: cannot be read \(No such file or directory\)"):
        list(read_rows(tmp_path / "nothing.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.tsv", b"text\n", r"rows\.tsv: got a name that ends in '\.tsv', need \.jsonl or \.csv"),
        ("rows.csv", b"text;label\na;b\n", r"rows\.csv line 1: columns are separated by ';', need commas"),
        ("rows.csv", b"text\tlabel\na\tb\n", r"line 1: columns are separated by '\\t', need commas"),
        ("rows.csv", "text\nplain\ncafé\n".encode("latin-1"), r"rows\.csv line 3: not UTF-8 .* iconv -f latin1"),
    ],
)
def test_files_of_another_kind_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_the_ending_s_case_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "ROWS.CSV").write_text("text\na\n")
    assert [row.text for row in read_rows(tmp_path / "ROWS.CSV")] == ["a"]
