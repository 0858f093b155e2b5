"""A report has the same content in every form; a comparison separates changes from noise."""

import re
from pathlib import Path

import msgspec
import pytest
from commands import ptexport
from links import links_of

from ptexport.runtime.errors import BenchError, DataError
from ptexport.toolkit.bench.compare import compare
from ptexport.toolkit.bench.pages import html, markdown
from ptexport.toolkit.bench.report import BenchReport, Figure, Machine, Plot, Series, Table, median_interval
from ptexport.toolkit.bench.terminal import print_comparison, print_report
from ptexport.toolkit.evaluation.metrics import wilson_interval

MACHINE = Machine(
    processor="an abacus",
    cpus=2,
    memory_mb=1024,
    system="Linux 6 x86_64",
    python="3.11.4",
    versions={"numpy": "2.1", "torch": "2.2"},
)


def report_of(*figures: Figure, **changes: object) -> BenchReport:
    given = {
        "kind": "speed",
        "title": "tiny <b>&",
        "made": "2026-11-25T07:00+00:00",
        "command": "ptexport bench speed tiny",
        "machine": MACHINE,
        "bundles": {"one, fp32": "0123456789abcdef" * 4, "other, int8": "fedcba9876543210" * 4},
        "verdict": ["tiny is 2.50 times faster", "other is smaller"],
        "how": ["alternately", "see `a <b>`"],
        "tables": [
            Table(
                title="times",
                columns=["system", "a|b", "latency (ms)"],
                rows=[["tiny", "<b> of 3", "29.5 (20.1 to 31.2)"], ["other", "none", "30.5 (20.1 to 41.2)"]],
                note="medians",
                highlight=0,
            )
        ],
        "plots": [
            Plot(title="latency", x_label="x", y_label="y", series=[Series(name="a", x=[1, 2], y=[3, 4])]),
            Plot.bars("memory", "MB", ["tiny: 1 MB", "<other>: 2 MB"], [1, 2], [(0.5, 1.5), (1, 3)], highlight=0),
        ],
        "figures": list(figures),
        "left_out": {"other": "not installed"},
    }
    return BenchReport(**{**given, **changes})  # type: ignore[arg-type]


def ratio(*values: float, name: str = "ratio/peft/1x28", better: str = "higher") -> Figure:
    return Figure.of(name, values, "x", better)  # type: ignore[arg-type]


def test_a_report_has_the_same_content_in_every_form() -> None:
    report = report_of(ratio(2.0, 3.0, 2.5))
    assert report.figures[0] == Figure(name="ratio/peft/1x28", value=2.5, low=2, high=3, unit="x", better="higher")
    text, page = markdown(report), html(report).decode()
    for content in (
        *(
            "tiny is 2.50 times faster",
            "other is smaller",
            "times",
            "29.5",
            "medians",
            "other: not installed",
            "alternately",
            "ptexport bench speed tiny",
        ),
        *("25 November 2026, 07:00 on 2 CPUs of an abacus, 1 GiB", "one, fp32: manifest 0123456789abcdef."),
        *("other, int8: manifest fedcba9876543210.", "numpy 2.1, torch 2.2; Python 3.11.4; Linux 6 x86_64."),
    ):
        assert content in text
        assert content in page
    assert "a\\|b" in text
    assert "<code>a &lt;b&gt;</code>" in page
    figure = '<td data-heading="latency (ms)"><span>29.5</span> <span>(20.1 to 31.2)</span></td>'
    text = '<td class="text" data-heading="a|b">&lt;b&gt; of 3</td>'
    assert f'<tr class="highlight"><td class="text" data-heading="system">tiny</td>{text}{figure}</tr>' in page
    assert "<b>" not in page
    assert not links_of(page)


def test_the_verdict_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(ratio(2.0))
    assert markdown(report).startswith("# tiny is 2.50 times faster\n\n- other is smaller\n\ntiny <b>&. 25 November")
    body = html(report).decode().partition("</style>")[2]
    assert body.strip().startswith("<h1>tiny is 2.50 times faster</h1>")
    print_report(report)
    assert capsys.readouterr().out.startswith("tiny is 2.50 times faster\nother is smaller\nNot measured: other: not")


def test_a_page_is_as_wide_as_its_screen_and_says_its_plots_in_words() -> None:
    """Nothing on the page has a width in pixels; tables scroll inside themselves."""
    page = html(report_of(ratio(2.0))).decode()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<svg") == page.count('<svg role="img" aria-label="') == page.count("<figcaption>") == 2
    assert '<figcaption>latency</figcaption><svg role="img" aria-label="latency, y by x: a: 3, 4"' in page
    assert 'aria-label="memory, MB: tiny: 1 MB; &lt;other&gt;: 2 MB"' in page
    assert ">&lt;other&gt;: 2 MB</text>" in page, "the plot itself has its values"
    assert page.count("<table") == page.count('<div class="wide" tabindex="0"><table')
    assert not re.findall(r"\swidth: *\d+px", page)


def test_the_rows_of_a_wide_table_are_blocks_on_a_phone() -> None:
    """The control: a narrow table stays one, and so does a long one."""

    def kind_of(columns: int, rows: int) -> str:
        table = Table(title="t", columns=[f"c{n}" for n in range(columns)], rows=[["1"] * columns] * rows)
        page = html(report_of(ratio(2.0), tables=[table])).decode()
        return page.partition('<table class="')[2].partition('"')[0]

    assert (kind_of(5, 20), kind_of(4, 20), kind_of(5, 21)) == ("blocks", "small", "long")
    style = html(report_of(ratio(2.0))).decode().partition("</style>")[0]
    assert ".blocks td::before { content: attr(data-heading);" in style


def test_a_long_name_above_a_bar_is_cut_but_not_its_figures() -> None:
    label = f"{'name-' * 20}int8: 29.5 ms, no measurable difference"
    page = html(report_of(ratio(2.0), plots=[Plot.bars("t", "ms", [label, "a: 1.0 ms"], [29.5, 1.0])])).decode()
    assert f">{label}</text>" not in page
    assert ">name-name-name-name-n…: 29.5 ms, no measurable difference</text>" in page
    assert f"{label}; a: 1.0 ms" in page, "it is whole in words"


def test_printed_reports_fit_80_columns_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And have no escape codes. The control: the figures take two lines, since one is too narrow for them."""
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = [f"{number},000.5 (9,999.5 to 11,111.5)" for number in (10, 11)]
    table = Table(title="t", columns=["a system", *"bc"], rows=[["transformers-onnx", *wide]])
    print_report(report_of(ratio(2.0), tables=[table], how=[]))
    printed = capsys.readouterr().out
    figures = [line for line in printed.splitlines() if "000.5" in line or "to 11,111.5" in line]
    assert [line.count(".5") for line in figures] == [2, 4], "figures are whole"
    print_comparison(compare(report_of(ratio(2.0, 2.1)), report_of(ratio(1.0, 1.1)), band=0.15))
    printed += capsys.readouterr().out
    assert "1 of 1 figures got worse beyond noise: ratio/peft/1x28." in printed
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_reports_are_read(tmp_path: Path) -> None:
    report = report_of(ratio(2.0, 3.0, 2.5))
    path = tmp_path / "report.json"
    path.write_bytes(msgspec.json.encode(report))
    assert BenchReport.read(tmp_path) == BenchReport.read(path) == report
    path.write_text("{}")
    with pytest.raises(DataError, match="is not a report of this version"):
        BenchReport.read(path)


def test_the_interval_of_a_median() -> None:
    """One or two slow rounds do not widen it: 9 rounds leave out one at each end (96.1 %), 15 three (96.5 %)."""
    for n, ranks in ((1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (9, (2, 8)), (15, (4, 12)), (30, (10, 21))):
        assert median_interval([float(rank) for rank in range(n, 0, -1)]) == ranks


@pytest.mark.parametrize(
    ("new", "change"),
    [
        (ratio(2.3, 2.35, 2.5), "same"),  # within the band
        (ratio(1.5, 1.6, 2.1), "same"),  # the intervals overlap
        (ratio(1.8, 1.85, 1.9), "same"),
        (ratio(1.0, 1.1, 1.2), "worse"),
        (ratio(3.0, 3.1, 3.2), "better"),
    ],
)
def test_a_change_is_beyond_the_band_and_beyond_the_intervals(new: Figure, change: str) -> None:
    old = ratio(2.0, 2.1, 2.2)
    (compared,) = compare(report_of(old), report_of(new), band=0.15).compared
    assert compared.change == change
    (turned,) = compare(
        report_of(msgspec.structs.replace(old, better="lower")),
        report_of(msgspec.structs.replace(new, better="lower")),
        band=0.15,
    ).compared
    assert turned.change == {"worse": "better", "better": "worse", "same": "same"}[change]


def test_for_accuracies_only_the_intervals_count() -> None:
    """The control: the same figures in another unit are within the band."""

    def accuracy(right: int, unit: str = "%") -> BenchReport:
        low, high = (100 * share for share in wilson_interval(right, 1000))
        value = right / 10
        return report_of(Figure(name="accuracy/a", value=value, low=low, high=high, unit=unit, better="higher"))

    def change(old: BenchReport, new: BenchReport) -> str:
        return compare(old, new, band=0.15).compared[0].change

    assert change(accuracy(800), accuracy(720)) == "worse"
    assert change(accuracy(720), accuracy(800)) == "better"
    assert change(accuracy(800), accuracy(790)) == "same"
    assert change(accuracy(800, "x"), accuracy(720, "x")) == "same"


def test_a_gpu_is_part_of_the_machine() -> None:
    gpu = msgspec.structs.replace(MACHINE, gpu="NVIDIA Orin")
    assert "1 GiB and NVIDIA Orin" in markdown(report_of(machine=gpu))
    assert compare(report_of(ratio(1)), report_of(ratio(1)), band=0).same_machine
    assert not compare(report_of(ratio(1)), report_of(ratio(1), machine=gpu), band=0).same_machine


def test_comparing_by_the_command(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("old.json", "new.json", "other.json"))
    old.write_bytes(msgspec.json.encode(report_of(ratio(2.0, 2.1), ratio(5.0, name="ratio/gone/1x28"))))
    new.write_bytes(msgspec.json.encode(report_of(ratio(1.0, 1.1))))
    other.write_bytes(msgspec.json.encode(report_of(ratio(1.0), kind="serve")))
    done = ptexport("bench", "compare", old, new)
    assert (done.returncode, "worse" in done.stdout, "Only in the old report: ratio/gone" in done.stdout) == (
        1,
        True,
        True,
    )
    assert "lacks ratio/gone/1x28 of" in done.stderr
    old.write_bytes(msgspec.json.encode(report_of(ratio(2.0, 2.1))))
    done = ptexport("bench", "compare", old, new)
    assert (done.returncode, "ratio/peft/1x28; measure again, or find what changed" in done.stderr) == (1, True)
    assert ptexport("bench", "compare", new, old, "--json").returncode == 0
    assert ptexport("bench", "compare", old, new, "--band", "60").returncode == 0
    interval = {"low": 75, "high": 85, "unit": "%", "better": "higher"}
    old.write_bytes(msgspec.json.encode(report_of(Figure(name="accuracy/a", value=80, **interval))))
    new.write_bytes(msgspec.json.encode(report_of(Figure(name="accuracy/a", value=79.5, **interval))))
    assert "-0.5 points" in ptexport("bench", "compare", old, new).stdout
    assert "compare two of one kind" in ptexport("bench", "compare", old, other).stderr
    with pytest.raises(BenchError, match="no figure in common"):
        compare(report_of(), report_of(ratio(1)), band=0)


def test_the_interval_is_wilsons() -> None:
    """As in Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3."""
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(right, n) == pytest.approx((low, high), abs=1e-4)
