"""A report -> the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.toolkit.bench.compare import Compared, Comparison
from ptexport.toolkit.bench.report import Figure, Report

_WIDTH = 150  # where nobody's window limits it


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def show(report: Report) -> None:
    """Print a report's tables and its verdict."""
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


def show_comparison(comparison: Comparison) -> None:
    """Print two reports' figures side by side."""
    console = _console()
    table = Table()
    for number, heading in enumerate(("figure", "was", "is", "change")):
        table.add_column(heading, justify="right" if number else "left")
    for each in comparison.compared:
        said = f"{_change(each)} {each.change}" if each.change != "same" else _change(each)
        table.add_row(escape(each.name), _said(each.old), _said(each.new), said)
    console.print(table)
    for names, where in ((comparison.only_old, "first"), (comparison.only_new, "second")):
        if names:
            console.print(f"only in the {where}: {', '.join(names)}", markup=False, highlight=False, soft_wrap=True)
    if not comparison.same_machine:
        console.print("Measured on different machines: ratios may differ by that alone.", highlight=False)


def _change(compared: Compared) -> str:
    old, new = compared.old.value, compared.new.value
    if compared.unit == "%":
        return f"{new - old:+.1f} points"
    return f"{new / old - 1:+.0%}" if old else ""


def _said(figure: Figure) -> str:
    spread = "" if figure.low == figure.high else f" ({figure.low:.3g} to {figure.high:.3g})"
    return f"{figure.value:.3g}{spread} {escape(figure.unit)}"
