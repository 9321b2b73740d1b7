"""Tables of text that fit the terminal: what matters most stays, what is long is cut or wrapped."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

_GAP = 2
_SHORTEST = 12
"""Columns that a shortened cell keeps, and a wrapped one."""

_WIDE = 1000
"""Columns where no terminal says how many."""


@dataclass(frozen=True)
class Table:
    """The columns of a table, and what becomes of them where there is no room.

    Attributes:
        header: their names.
        shortened: those whose cells are cut, as little as will do.
        dropped: those that are left out then, the first one first.
        wrapped: the one that goes on in further lines; the last of all.
    """

    header: Sequence[str]
    shortened: Sequence[str] = ()
    dropped: Sequence[str] = ()
    wrapped: str = ""

    def lines(self, rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[str]:
        """The header and the rows, a line after the other.

        Args:
            width: columns of the terminal; as many as it has, or COLUMNS says, if None.
        """
        if width is None:
            width = shutil.get_terminal_size((_WIDE, 0)).columns
        wanted = [_width(name) for name in self.header]
        for row in rows:
            for at, cell in enumerate(row):
                if len(cell) > wanted[at] or not cell.isascii():
                    wanted[at] = max(wanted[at], _width(cell))
        widths = self._fitted(dict(zip(self.header, wanted, strict=True)), width)
        shown = [at for at, name in enumerate(self.header) if name in widths]
        columns = [(at, widths[self.header[at]]) for at in shown]
        for row in (self.header, *rows):
            yield from self._row(row, columns)

    def _fitted(self, widths: dict[str, int], width: int) -> dict[str, int]:
        """The widths of the columns that are shown."""
        flexible = [*self.shortened, *filter(None, [self.wrapped])]
        dropped = list(self.dropped)
        while True:
            there = [name for name in flexible if name in widths]
            least = {**widths, **{name: min(widths[name], _SHORTEST) for name in there}}
            spare = width - sum(least.values()) - _GAP * (len(least) - 1)
            if spare >= 0 or not dropped:
                break
            widths.pop(dropped.pop(0), None)
        for name in reversed(there):  # what wraps first: the others are shortened before it
            more = max(0, min(spare, widths[name] - least[name]))
            least[name] += more
            spare -= more
        return least

    def _row(self, row: Sequence[str], columns: Sequence[tuple[int, int]]) -> Iterator[str]:
        parts = []
        for at, width in columns:
            cell = row[at]
            if _width(cell) <= width:
                parts.append([cell])
            elif self.header[at] == self.wrapped:
                parts.append(textwrap.wrap(cell, width) or [""])
            else:
                parts.append([set_cell_size(cell, width - 1).rstrip() + "…"])
        for number in range(max(map(len, parts))):
            cells = [part[number] if number < len(part) else "" for part in parts]
            padded = [
                cell + " " * (width + _GAP - _width(cell))
                for cell, (_, width) in zip(cells, columns, strict=True)
            ]
            yield "".join(padded).rstrip()


def _width(cell: str) -> int:
    return len(cell) if cell.isascii() else cell_len(cell)
