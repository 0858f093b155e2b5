"""A report -> the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.toolkit.bench.report import Report


def show(report: Report) -> None:
    """Print a report's tables and its verdict."""
    console = Console()
    for given in report.tables:
        table = Table(title=escape(given.title), title_justify="left", caption=escape(given.note) or None)
        for number, heading in enumerate(given.columns):
            table.add_column(escape(heading), justify="right" if number else "left")
        for row in given.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    lines = [*report.verdict, *(f"not measured: {name}: {why}" for name, why in report.left_out.items())]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
