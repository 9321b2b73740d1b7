"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without a final newline.

    Args:
        columns: Headings.
        rows: Cells; a shorter row is padded with empty cells.
    """
    padded = ([*row, *[""] * (len(columns) - len(row))] for row in rows)
    return "\n".join([_line(columns), "|---" * len(columns) + "|", *map(_line, padded)])


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
