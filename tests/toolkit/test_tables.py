"""Tables on standard output: within 80 columns in a pipe, and no word or figure of them is cut."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ptexport
from rich.console import Console

from ptexport.runtime.bundle.folder import Bundle
from ptexport.toolkit import tables
from ptexport.toolkit.cli import tables as run_tables
from ptexport.toolkit.cli import tables_inspect
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.tables import print_table
from ptexport.toolkit.training.sweep import Outcome

WORDS = ["a template with several words in it", "another one that is nearly as long"]
FIGURES = [f"{number}.25 (1,000.1 to 1,000.9)" for number in range(10, 14)]


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def no_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print tables only: a pipe gets sentences whole, which may be longer than 80 columns."""
    for module in (tables, run_tables, tables_inspect):
        monkeypatch.setattr(module, "say", lambda *_, **__: None)


def test_a_table_that_fits_has_a_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("system", "latency (ms)"), [["a (b)", "1.0 (0.9 to 1.1)"], ["c", "10.0"]])
    assert lines_of(capsys) == [
        "system      latency (ms)",
        "─" * 24,
        "a (b)   1.0 (0.9 to 1.1)",
        "c                   10.0",
    ]


def test_figures_break_before_brackets_and_words_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """The control: in 200 columns the same table has one line per row."""
    rows = [[words, *FIGURES[:3]] for words in WORDS]
    print_table(("template of the run", *"abc"), rows)
    lines = lines_of(capsys)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in (*" ".join(WORDS).split(), *(part for figure in FIGURES[:3] for part in re.split(r" (?=\()", figure))):
        assert part in text
    assert len(lines) > 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        print_table(("template of the run", *"abc"), rows)
    assert len(lines_of(capsys)) == 4


def test_what_is_wider_than_the_terminal_is_folded_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(["a-folder-of-the-cache"] * 6)
    print_table(("entry", "size (MB)"), [[path, "1,234"]])
    lines = lines_of(capsys)
    assert max(map(len, lines)) <= 80
    assert "".join(line.replace("1,234", "").strip() for line in lines[-2:]) == path


def test_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("[bold]", "b"), [["[red]x[/red]", "1"]], title="[i]", styles=["green"])
    lines = lines_of(capsys)
    assert [lines[0], lines[1].split()[0], lines[3].split()[0]] == ["[i]", "[bold]", "[red]x[/red]"]


def test_control_characters_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """A text could clear the screen, or write into the lines above."""
    print_table(("a\x9b", "b"), [["\x1b[2Jx", "1\xa0%"]], title="\x1b]0;t\a")
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\a"} & set(printed)
    assert "�[2Jx  1\xa0%" in printed


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_is_styled_and_a_pipe_is_not(
    no_color: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR leaves bold, which is no colour."""
    print_table(("a", "b"), [["ok", "1"]], highlight=0, styles=["green"])
    assert "\x1b" not in capsys.readouterr().out
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(tables, "Console", lambda: Console(force_terminal=True, color_system="standard", width=80))
    print_table(("a", "b"), [["ok", "1"]], highlight=0, styles=["green"])
    printed = capsys.readouterr().out
    assert ("\x1b[1m" in printed, "32m" in printed) == (True, not no_color)


PRINTED: dict[str, Callable[[Path, Path], None]] = {
    "train": lambda run, _: run_tables.print_metrics(Run.read(run), run),
    "sweep": lambda run, _: run_tables.print_outcomes(
        [Outcome(name=f"{WORDS[0].replace(' ', '-')},lr=0.{n}", dev_accuracy=1 / n, epochs=n) for n in range(1, 4)]
        + [Outcome(name="failed one", failed="no memory")],
        run,
    ),
    "export": lambda _, bundle: run_tables.print_export(Bundle.open(bundle).manifest, bundle),
}


@pytest.mark.usefixtures("no_sentences")
@pytest.mark.parametrize("which", PRINTED)
def test_tables_of_runs_fit(
    which: str, llama_run: Path, llama_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PRINTED[which](llama_run, llama_bundle)
    lines = lines_of(capsys)
    assert 20 < max(map(len, lines)) <= 80
    assert not [line for line in lines if "\x1b" in line or "…" in line]


@pytest.mark.usefixtures("no_sentences")
@pytest.mark.parametrize("command", ["evaluate", "inspect", "inspect run", "doctor", "doctor --run", "cache"])
def test_tables_of_commands_fit(command: str, llama_run: Path, llama_bundle: Path, rows_file: Path) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "evaluate": ("evaluate", llama_bundle, llama_bundle, "--data", rows_file, "--show-texts"),
        "inspect": ("inspect", llama_bundle),
        "inspect run": ("inspect", llama_run),
        "doctor": ("doctor",),
        "doctor --run": ("doctor", "--run", llama_bundle),
        "cache": ("cache",),
    }
    done = ptexport(*arguments[command], COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert 20 < max(map(len, lines)) <= 80
    assert not [line for line in lines if "\x1b" in line]
