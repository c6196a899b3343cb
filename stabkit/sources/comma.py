"""Tables of text: CSV as pandas, Lightning, Keras or a spreadsheet write it, separated by comma, semicolon, tab or space."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stabkit.sources.cells import Cell, read_cell
from stabkit.sources.collect import Collected
from stabkit.sources.lines import read_lines

__all__ = ["Table", "read", "recognise"]

_MOST_JOINED = 100
"""Lines that one quoted cell may span."""


@dataclass(frozen=True)
class Table:
    """How the cells of a table are told apart.

    Attributes:
        separator: The character between cells, " " for any white space.
        names: Of the columns.
    """

    separator: str
    names: tuple[str, ...]

    @property
    def decimal_comma(self) -> bool:
        """Whether a comma in a cell can be a decimal point."""
        return self.separator != ","


def recognise(lines: Sequence[str]) -> Table | None:
    """The table that begins with these lines, or None where they are none.

    A header is a line of names; the lines after it have as many cells, some of them numbers.
    """
    lines = [line for line in lines if line.strip() and not line.startswith("#")][:20]
    if len(lines) < 2:
        return None
    for separator in ("\t", ";", ",", " "):
        header = split(lines[0], separator)
        names = _names(header)
        if len(header) < 2 or names is None:
            continue
        table = Table(separator, names)
        rows = [split(line, separator) for line in lines[1:]]
        whole = [row for row in rows if len(row) == len(header)]
        numbers = [cell for row in whole for cell in row if isinstance(read_cell(cell, table.decimal_comma), float)]
        if 2 * len(whole) >= len(rows) and numbers:
            return table
    return None


def split(line: str, separator: str) -> list[str]:
    """The cells of one line."""
    if separator == " ":
        return line.split()
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def read(path: Path, into: Collected) -> None:
    """Read a table into columns."""
    head: list[str] = []
    for _, line, _ in read_lines(path, Collected()):
        head.append(line)
        if len(head) == 40:
            break
    table = recognise(head)
    if table is None:
        return
    kinds = {"\t": "separated by tabs", ";": "separated by semicolons", " ": "separated by spaces"}
    into.format = f"table {kinds[table.separator]}" if table.separator in kinds else "CSV"
    seen_header = False
    for number, cells, ended in _rows(path, table.separator, into):
        if not seen_header or _is_header(cells, table.names):
            names = _names(cells)
            if names is not None:
                if seen_header and names != table.names:
                    into.notes.append(f"line {number} is a new header: the columns change")
                table, seen_header = Table(table.separator, names), True
                continue
        _row(cells, table, number, ended, into)


def _row(cells: Sequence[str], table: Table, number: int, ended: bool, into: Collected) -> None:
    expected = len(table.names)
    if len(cells) < expected and not ended:
        into.notes.append(f"line {number}, the last, is incomplete: it was left out")
    elif len(cells) > expected and any(cell.strip() for cell in cells[expected:]):
        into.unreadable(number, f"it has {len(cells)} cells where there are {expected} columns")
    elif len(cells) == 1 and expected > 2 and cells[0].strip():
        into.unreadable(number, f"it has 1 cell where there are {expected} columns")
    else:
        read: dict[str, Cell] = {
            name: read_cell(cell, table.decimal_comma) for name, cell in zip(table.names, cells, strict=False) if name
        }
        into.add(read)


def _rows(path: Path, separator: str, into: Collected) -> Iterator[tuple[int, list[str], bool]]:
    """(line, cells, whether its line has an end) of each row; a quoted cell may go on over several lines."""
    waiting: list[tuple[int, str, bool]] = []
    for number, line, ended in read_lines(path, into):
        if waiting:
            waiting.append((number, line, ended))
            if line.count('"') % 2 == 0 and len(waiting) < _MOST_JOINED:
                continue
            if line.count('"') % 2:
                yield waiting[0][0], _joined([text for _, text, _ in waiting], separator), ended
            else:
                yield from _alone(waiting, separator, into)
            waiting = []
        elif not line.strip() or line.startswith("#"):
            continue
        elif separator != " " and line.count('"') % 2:
            waiting = [(number, line, ended)]
        else:
            yield number, split(line, separator), ended
    yield from _alone(waiting, separator, into)


def _joined(lines: list[str], separator: str) -> list[str]:
    try:
        return next(csv.reader([line + "\n" for line in lines], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def _alone(waiting: list[tuple[int, str, bool]], separator: str, into: Collected) -> Iterator[tuple[int, list[str], bool]]:
    """The lines behind a quote that was never closed, each by itself."""
    for number, line, ended in waiting:
        if line.count('"') % 2:
            into.unreadable(number, "a quote in it is never closed")
        elif line.strip():
            yield number, split(line, separator), ended


def _names(header: Sequence[str]) -> tuple[str, ...] | None:
    """The names of the columns, "" for one without; None where it is no header: where a cell of it is a number."""
    names = [cell.strip().strip('"').strip() for cell in header]
    if not any(names) or any(isinstance(read_cell(name), float) for name in names):
        return None
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if name and seen[name] > 1:
            names[index] = f"{name}.{seen[name] - 1}"  # as pandas does
    return tuple(names)


def _is_header(cells: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a row in the middle is a header: written again when the logger was opened again, perhaps with more columns."""
    if cells and cells[0][:1].isdigit():  # as almost every row begins
        return False
    stripped = [cell.strip().strip('"').strip() for cell in cells]
    return len(cells) > 1 and 2 * sum(cell in names for cell in stripped if cell) >= len(stripped) and all(stripped)
