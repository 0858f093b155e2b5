"""The common look of tables on standard output: as wide as the terminal or, in a pipe, at most 80 columns.

`COLUMNS` sets another width. A pipe gets no escape codes. Where a table is too wide, its headings wrap first, then
figures break before their brackets, then other text wraps between words.
"""

import re
import unicodedata
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_FIGURE = re.compile(r"[-+±<]?\d|[-?]?$")
_GAP = 2  # columns between cells
_NARROW = 26  # columns that a path is left at least


def figure_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Find the columns of figures, which are aligned right. Empty cells count as figures."""
    return [any(column) and all(map(_FIGURE.match, column)) for column in zip(*rows, strict=True)]


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    highlight: int | None = None,
    styles: Sequence[str] = (),
) -> None:
    """Print a table.

    Args:
        headings: headings of the columns; empty: none are printed.
        rows: cells, one per column; the first column names the rows.
        title: line above the table; "": none.
        highlight: number of a row in bold.
        styles: a style of rich for the first cell of each row; empty: none.
    """
    console = Console()
    if title:
        say(title, style="bold")
    if not rows:
        return
    headings, rows = [_printable(heading) for heading in headings], [[_printable(cell) for cell in row] for row in rows]
    rows, widths = _fit(headings, rows, console.width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_header=any(headings))
    aligned_right = figure_columns(rows)
    for number, width in enumerate(widths):
        heading = Text(headings[number] if headings else "")
        right = number > 0 and aligned_right[number]
        table.add_column(heading, justify="right" if right else "left", overflow="fold", width=width)
    for number, row in enumerate(rows):
        cells = [Text(cell) for cell in row]
        if styles:
            cells[0].stylize(styles[number])
        table.add_row(*cells, style="bold" if number == highlight else None)
    console.print(table)


def say(line: str, *, style: str = "") -> None:
    """Print a line of text: a terminal wraps it between words, a pipe gets it whole."""
    console = Console()
    console.print(Text(_printable(line), style=style), soft_wrap=not console.is_terminal)


def _printable(text: str) -> str:
    """Replace control characters, which a terminal would obey: a text or a label may contain anything."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def _fit(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> tuple[list[list[str]], list[int]]:
    """Choose the widths of columns, and break figures before their brackets if that is necessary."""
    cells = [list(row) for row in rows]
    heads = list(headings) or [""] * len(cells[0])
    available = width - _GAP * (len(heads) - 1)
    widths = [max(_longest_line(head), body) for head, body in zip(heads, _widths(cells), strict=True)]
    _shrink(widths, [max(_longest_word(h), body) for h, body in zip(heads, _widths(cells), strict=True)], available)
    if sum(widths) > available:
        figures = figure_columns(cells)
        cells = [
            [cell.replace(" (", "\n(") if breaks else cell for cell, breaks in zip(row, figures, strict=True)]
            for row in cells
        ]
        widths = [max(_longest_word(head), body) for head, body in zip(heads, _widths(cells), strict=True)]
        _shrink(widths, _least_widths(heads, cells, figures), available)
        _shrink(widths, [min(_NARROW, width) for width in widths], available)  # a path wider than the terminal
    return cells, widths


def _least_widths(heads: Sequence[str], cells: Sequence[Sequence[str]], figures: Sequence[bool]) -> list[int]:
    """Find the widths at which no word and no figure breaks."""
    return [
        max(_longest_word(head), *(_longest_line(cell) if is_figure else _longest_word(cell) for cell in column))
        for head, column, is_figure in zip(heads, zip(*cells, strict=True), figures, strict=True)
    ]


def _shrink(widths: list[int], least: Sequence[int], available: int) -> None:
    """Narrow the widest columns, one column at a time, until all fit or have their least width."""
    while sum(widths) > available:
        wide = [number for number, width in enumerate(widths) if width > least[number]]
        if not wide:
            return
        widths[max(wide, key=lambda number: widths[number])] -= 1


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_longest_line, column)) for column in zip(*rows, strict=True)]


def _longest_line(cell: str) -> int:
    return max((Text(line).cell_len for line in cell.split("\n")), default=0)


def _longest_word(cell: str) -> int:
    indent = len(cell) - len(cell.lstrip())
    return indent + max((Text(word).cell_len for word in cell.split()), default=0)
