"""A report, or a comparison of two -> tables on the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.toolkit.bench.compare import FigureChange, ReportComparison
from ptexport.toolkit.bench.report import BenchReport, Figure

_WIDTH = 150  # if standard output is not a terminal


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def print_report(report: BenchReport) -> None:
    """Print the tables and the verdict of a report."""
    console = _console()
    for given in report.tables:
        table = Table(title=escape(given.title), title_justify="left")
        for number, heading in enumerate(given.columns):
            table.add_column(escape(heading), justify="right" if number else "left")
        for row in given.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        if given.note:
            console.print(given.note, style="dim", markup=False, highlight=False)
    lines = [*report.verdict, *(f"not measured: {name}: {why}" for name, why in report.left_out.items())]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_comparison(comparison: ReportComparison) -> None:
    """Print the figures of two reports side by side."""
    console = _console()
    table = Table()
    for number, heading in enumerate(("figure", "old", "new", "change")):
        table.add_column(heading, justify="right" if number else "left")
    for each in comparison.compared:
        change = f"{_difference(each)} {each.change}" if each.change != "same" else _difference(each)
        table.add_row(escape(each.name), _with_interval(each.old), _with_interval(each.new), change)
    console.print(table)
    for names, which in ((comparison.only_old, "old"), (comparison.only_new, "new")):
        if names:
            line = f"only in the {which} report: {', '.join(names)}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not comparison.same_machine:
        console.print("The reports are from different machines, which alone may change ratios.", highlight=False)


def _difference(change: FigureChange) -> str:
    old, new = change.old.value, change.new.value
    if change.unit == "%":
        return f"{new - old:+.1f} points"
    return f"{new / old - 1:+.0%}" if old else ""


def _with_interval(figure: Figure) -> str:
    interval = "" if figure.low == figure.high else f" ({figure.low:.3g} to {figure.high:.3g})"
    return f"{figure.value:.3g}{interval} {escape(figure.unit)}"
