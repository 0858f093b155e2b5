"""Files as people have them: byte order marks, Windows line ends, quotes; and what is refused with its line."""

import datetime
import decimal
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from ptexport.runtime.errors import DataError, MissingExtraError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows

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


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str, tmp_path: Path) -> None:
    lines = [["text", "label", "note"], [f'"a{delimiter} b"', "yes", ",;"], ["c", "no", "\t|"]]
    lines[1 + ("\t" in delimiter or "|" in delimiter)][2] = "none"
    lines[1 + (delimiter not in "\t|")][2] = "none"
    content = "\n".join(delimiter.join(fields) for fields in lines) + "\n"
    assert rows_of(tmp_path / "rows.csv", content.encode()) == [(f"a{delimiter} b", None, "yes"), ("c", None, "no")]


def test_a_file_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text('a "b" c, d\t0\nc\t1\n')
    rows = list(read_rows(tmp_path / "rows.tsv", Columns(text="{1}", label="2")))
    assert [(row.where, row.text, row.label) for row in rows] == [
        ("rows.tsv line 1", 'a "b" c, d', "0"),
        ("rows.tsv line 2", "c", "1"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n \ntext;label\na;x\n", ("rows.csv line 4", "a", "x")),
        (b"sep=;\r\ntext;label\r\na;x\r\n", ("rows.csv line 3", "a", "x")),
        (b'"text",label ,"more\nof it"\na,x,1\n', ("rows.csv line 3", "a", "x")),
        (b'text,label,"a tab\tin it"\na,x,1\n', ("rows.csv line 2", "a", "x")),
    ],
)
def test_headers_as_programs_write_them(content: bytes, expected: tuple[str, str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert [(row.where, row.text, row.label) for row in read_rows(tmp_path / "rows.csv")] == [expected]


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "rows.tsv", b'text\n"a, b; c"\nd\n') == [("a, b; c", None, None), ("d", None, None)]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows"])
def test_a_json_array(name: str, tmp_path: Path) -> None:
    content = b'\n[{"text": "a", "label": 1},\n {"text": "b", "label": 0}]\n'
    assert rows_of(tmp_path / name, content) == [("a", None, "1"), ("b", None, "0")]


def test_a_name_without_an_ending_is_what_it_begins_with(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "rows", b'{"text": "a"}\n') == [("a", None, None)]
    assert rows_of(tmp_path / "rows", b"text;label\na;yes\n") == [("a", None, "yes")]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_tables(ending: str, tmp_path: Path) -> None:
    path, columns = tmp_path / f"rows.{ending}", {"title": ["a", "b", "c"], "class": [1, 0, -1]}
    names = {
        "info": {"features": {"class": {"names": ["no", "yes"], "_type": "ClassLabel"}, "title": {"dtype": "string"}}}
    }
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(names)})
    if ending == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    elif ending == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    rows = list(read_rows(path, Columns(text="{title}", label="class"), keep=None))
    assert [(row.where, row.text, row.label) for row in rows] == [
        (f"rows.{ending} row 1", "a", "yes"),
        (f"rows.{ending} row 2", "b", "no"),
        (f"rows.{ending} row 3", "c", None),
    ]
    assert rows[0].kept == {"title": "a", "class": 1}
    named = Columns(text="{title}", label="class", label_names={"0": "bad", "1": "good", "-1": "odd"})
    assert [row.label for row in read_rows(path, named)] == ["good", "bad", "odd"]


@pytest.mark.parametrize(
    "metadata", [b"[]", b"not JSON", b'{"info": {"features": {"label": {"names": ["a"]}, "text": 1}}}', b'{"info": 1}']
)
def test_metadata_that_fits_no_column(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "other": [[1]]}).replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert [(row.text, row.label) for row in read_rows(tmp_path / "rows.parquet")] == [("a", None)]


def test_kept_values_are_json(tmp_path: Path) -> None:
    columns = {
        "text": ["a"],
        "at": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
        "day": [datetime.date(2026, 11, 28)],
        "price": [decimal.Decimal("1.50")],
        "tags": [["x", "y"]],
        "gone": pa.array([None], pa.int64()),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    ((row),) = read_rows(tmp_path / "rows.parquet", keep=None)
    kept = {
        "at": "2023-11-14 22:13:20.000000001",
        "day": "2026-11-28",
        "price": "1.50",
        "tags": ["x", "y"],
        "gone": None,
    }
    assert row.kept == {"text": "a", **kept}
    ((row),) = read_rows(tmp_path / "rows.parquet", keep=["day"])
    assert row.kept == {"day": "2026-11-28"}


def test_tables_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'pyarrow'; pip install 'ptexport\[parquet\]'"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_rows_come_as_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    writer = threading.Thread(target=(tmp_path / "rows").write_text, args=("text\n" + "a\n" * 100_000,))
    writer.start()
    rows = read_rows(tmp_path / "rows")
    assert next(rows).where == "rows line 2"
    assert writer.is_alive()
    assert sum(1 for _ in rows) == 99_999
    writer.join()


def test_standard_input() -> None:
    code = "from pathlib import Path; from ptexport.runtime.rows.read import read_rows\n"
    code += "print([(row.where, row.text) for row in read_rows(Path('-'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], input="text;label\né;x\n".encode(), capture_output=True, check=True
    )
    assert done.stdout.decode() == "[('standard input line 2', 'é')]\n"


def test_what_was_found_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("title;class\na;1\nb;2\n")
    said: list[str] = []
    list(read_rows(tmp_path / "rows.csv", Columns(text="{title}", label="class"), say=said.append))
    assert said == ["data rows.csv: CSV with semicolons, text from 'title', label from 'class'"]


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
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', "line 2: got list, need an object"),
        ("a.json", b'["a"]\n', "a.json item 1: got str, need an object"),
        ("a.json", b'[{"text": "a"},\n', "a.json: not JSON"),
        (
            "a.jsonl",
            b'{"txt": "a"}\n',
            r"no column 'text', got \['txt'\], did you mean 'txt'; say which one it is with --columns text=txt",
        ),
        ("a.jsonl", b'{"text": true}\n', "'text' is true, need a string"),
        ("a.jsonl", b'{"text": null}\n', "'text' is null, need a string"),
        ("a.jsonl", b'{"text": "a", "text_b": [1]}\n', r"'text_b' is \[1\], need a string"),
        ("a.jsonl", b'{"text": "a", "label": {}}\n', "'label' is {}, need the name of a label"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: not JSON"),
        ("a.jsonl", b'{"text": "a", "id": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: 'text' holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("a.csv", b"id~text\n1~a\n", "no column 'text', got .*; commas, semicolons, tabs or bars separate columns"),
        ("a.csv", b"text,label\na,b,c\n", "line 2: got more or fewer fields than the first line, need 2"),
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
        (
            "rows.xlsx",
            b"text\n",
            r"rows\.xlsx: got a name that ends in '\.xlsx', need \.csv, \.tsv, .* convert or rename",
        ),
        ("rows.parquet", b"text\n", r"rows\.parquet: cannot be read as parquet"),
        ("rows.arrow", b"text\n", r"rows\.arrow: cannot be read as arrow"),
        ("rows.csv", "text\nplain\n".encode("utf-16"), r"rows\.csv: not UTF-8 .* iconv -f utf-16 -t utf-8"),
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
