"""Rows -> the rows that a run keeps for the parity check."""

from collections.abc import Sequence

from ptexport.runtime.rows.row import Row

MAX_CHECK_ROWS = 256
_LAST_LATIN = 0x24F  # end of the Unicode block Latin Extended-B


def choose_check_rows(rows: Sequence[Row]) -> list[Row]:
    """Choose at most `MAX_CHECK_ROWS` rows for parity: the longest, then empty, then non-Latin, then other rows."""
    longest = max(rows, key=lambda row: len(row.text) + max(map(len, row.choices or [row.text_b or ""])))

    def rank(row: Row) -> int:
        if row is longest:
            return 0
        return 1 if not row.text.strip() else 2 if any(ord(c) > _LAST_LATIN for c in row.text) else 3

    return sorted(rows, key=rank)[:MAX_CHECK_ROWS]
