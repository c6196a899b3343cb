"""What a reader hands over: rows of cells, kept as columns of plain numbers, and what could not be read."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array
from stabkit.sources.cells import Cell

__all__ = ["Collected", "Column"]

MOST_COLUMNS = 20_000
"""Names beyond these are made up as the run goes; they are not kept."""

MOST_NUMBERS = 100_000_000
"""16 bytes each. No log of a training run comes near; a file made to fill the memory does."""

_SHOWN = 5


@dataclass
class Column:
    """The numbers of one column.

    Attributes:
        rows: In which rows it holds a number.
        numbers: The numbers.
        empty_after: How many empty cells have followed its last number.
        text: Whether it holds something that is no number.
    """

    rows: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    empty_after: int = 0
    text: bool = False

    @property
    def where(self) -> NDArray[np.int64]:
        """int64 [n]: the rows."""
        return np.array(self.rows, dtype=np.int64)

    @property
    def values(self) -> Array:
        """float64 [n]: the numbers."""
        return np.array(self.numbers, dtype=np.float64)


class Collected:
    """Rows in the order in which the log has them.

    Args:
        most_rows: After so many it is full.

    Attributes:
        columns: By name, in order of appearance.
        rows: How many rows there are.
        format: What the log is, in words, such as "CSV".
        notes: What there is to say of the file: damage, a truncated end.
        full: Whether there are more numbers than are kept; a reader stops then.
    """

    def __init__(self, most_rows: int = 2**62) -> None:
        self._most_rows = most_rows
        self.columns: dict[str, Column] = {}
        self.rows = 0
        self.format = ""
        self.notes: list[str] = []
        self.full = False
        self._numbers = 0
        self._unreadable: dict[str, list[int]] = {}
        self._too_many = False

    def add(self, cells: Mapping[str, Cell]) -> None:
        """Append a row. A cell that is None is there and empty; a name that is not there is no cell."""
        row, self.rows = self.rows, self.rows + 1
        columns = self.columns
        for name, cell in cells.items():
            column = columns.get(name) or self._column(name)
            if column is None:
                continue
            if isinstance(cell, str):
                column.text = True
            elif cell is None:
                column.empty_after += 1
            else:
                column.rows.append(row)
                column.numbers.append(cell)
                column.empty_after = 0
                self._numbers += 1
        self._see_whether_full()

    def _column(self, name: str) -> Column | None:
        """The column of a name, made where there is none yet; None where there are too many."""
        if name not in self.columns:
            if len(self.columns) >= MOST_COLUMNS:
                if not self._too_many:
                    self.notes.append(f"there are more than {MOST_COLUMNS:,} columns; {name!r} and later ones are not read")
                self._too_many = True
                return None
            self.columns[name] = Column()
        return self.columns[name]

    def _see_whether_full(self) -> None:
        if self.rows >= self._most_rows:
            self.full = True
        if self._numbers > MOST_NUMBERS and not self.full:
            self.full = True
            self.notes.append(f"only the first {MOST_NUMBERS:,} numbers were read")

    def add_many(self, time: Array, step: Array, found: Sequence[tuple[NDArray[np.int64], str, Array]]) -> None:
        """Append a row for each event that holds a number, in the events' order.

        Args:
            time: [events].
            step: [events].
            found: (events, name, number of each) of those that hold numbers of that name; a name may come several times.
        """
        holds = np.zeros(len(time), dtype=bool)
        for events, _, _ in found:
            holds[events] = True
        kept = np.flatnonzero(holds)[: max(self._most_rows - self.rows, 0)]
        row = np.full(len(time), -1)
        row[kept] = self.rows + np.arange(len(kept))
        names: dict[str, list[tuple[NDArray[np.int64], Array]]] = {}
        for events, name, numbers in sorted(found, key=lambda part: int(part[0][0])):
            names.setdefault(name, []).append((events, numbers))
        self._extend("step", row[kept], step[kept])
        self._extend("wall_time", row[kept], time[kept])
        for name, parts in names.items():
            events, numbers = (np.concatenate(each) for each in zip(*parts, strict=True))
            inside = np.flatnonzero(row[events] >= 0)
            order = inside[np.argsort(events[inside], kind="stable")]
            self._extend(name, row[events[order]], numbers[order])
        self.rows += len(kept)
        self._see_whether_full()

    def _extend(self, name: str, rows: NDArray[np.int64], numbers: Array) -> None:
        column = self._column(name) if len(rows) else None
        if column is not None:
            column.rows.frombytes(rows.astype(np.int64).tobytes())
            column.numbers.frombytes(numbers.astype(np.float64).tobytes())
            column.empty_after = 0
            self._numbers += len(rows)

    def unreadable(self, line: int, why: str) -> None:
        """Note a line that could not be read."""
        lines = self._unreadable.setdefault(why, [0])
        lines[0] += 1
        if len(lines) <= _SHOWN:
            lines.append(line)

    def remarks(self) -> list[str]:
        """What there is to say, the lines that could not be read first."""
        return [*(_lines(why, lines[0], lines[1:]) for why, lines in self._unreadable.items()), *self.notes]


def _lines(why: str, count: int, lines: list[int]) -> str:
    where = ", ".join(map(str, lines)) + (f" and {count - len(lines)} more" if count > len(lines) else "")
    return f"line {where} could not be read: {why}" if count == 1 else f"lines {where} could not be read: {why}"
