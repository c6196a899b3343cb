"""Where the numbers of a table lie in the segments, and how any rows of it are read: chunk by chunk, no page kept mapped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array
from stabkit.runlog.columns import LazyColumns
from stabkit.runlog.record import Layout, TensorInfo
from stabkit.runlog.segments import Segment

__all__ = ["Block", "blocks_of", "columns_of"]

Index = NDArray[np.int64]

_CHUNK = 4 * 2**20
"""Bytes of records read at once: all columns are taken out of them while they lie in the processor's cache."""


@dataclass(frozen=True)
class Block:
    """Records of one segment and one layout, and where they go in the table: `table[at, place] = tensors[rows, own]`.

    Attributes:
        segment: The segment.
        rows: int64 [n], increasing: records of the segment.
        at: int64 [n], increasing: rows of the table.
        place: Columns of the table.
        own: Columns of the records.
    """

    segment: Segment
    rows: Index
    at: Index
    place: Index | slice
    own: slice

    def write(self, tables: dict[str, Array], begin: int, end: int) -> None:
        """Fill in the rows from `begin` to `end` of the whole table: those are all that `tables` hold."""
        records = self.segment.records["tensors"]
        names = [name for name in tables if name in (records.dtype.names or ())]
        first, stop = np.searchsorted(self.at, [begin, end]).tolist()
        step = max(1, _CHUNK // self.segment.records.itemsize)
        for low in range(first, stop if names else first, step):
            high = min(low + step, stop)
            rows, at = _span(self.rows[low:high]), _span(self.at[low:high] - begin)
            if not isinstance(self.place, slice) and not isinstance(at, slice):
                at = at[:, None]
            for name in names:
                tables[name][at, self.place] = records[name][rows, self.own]
            self.segment.release(int(self.rows[low]), int(self.rows[high - 1]) + 1)

    def of_tensor(self, index: int, tensors: int) -> list[Block]:
        """The block with one tensor's records only; nothing where it has none."""
        found = np.flatnonzero(np.arange(tensors)[self.place] == index).tolist()
        return [Block(self.segment, self.rows, self.at, slice(0, 1), slice(column, column + 1)) for column in found]


def blocks_of(
    segments: Sequence[Segment], row: Index, layouts: Sequence[Layout | None]
) -> tuple[list[Block], tuple[TensorInfo, ...], bool]:
    """The blocks, the union of the layouts' tensors in order of appearance, and whether any tensor's name is lost.

    Args:
        segments: Of tensor records, oldest first.
        row: int64 [k], which of the undamaged records of all segments together makes each row of the table.
        layouts: What the layout numbers in the records stand for, None where that is lost.
    """
    blocks: list[Block] = []
    infos: dict[str, TensorInfo] = {}
    position: dict[str, int] = {}
    nameless = False
    begin = 0
    for segment in segments:
        inside = np.flatnonzero((row >= begin) & (row < begin + len(segment.rows)))
        own = row[inside] - begin
        begin += len(segment.rows)
        numbers = segment["layout"][own]
        for number in np.unique(numbers).tolist():
            width = segment.records.dtype["tensors"].shape[0]
            layout = layouts[number] if 0 <= number < len(layouts) else None
            if layout is None or len(layout.tensors) != width:
                layout = Layout(tuple(TensorInfo(f"tensor{i}", ()) for i in range(width)))
                nameless = True
            for info in layout.tensors:
                position.setdefault(info.name, len(position))
                infos[info.name] = info
            here = np.flatnonzero(numbers == number)
            columns = np.array([position[info.name] for info in layout.tensors], dtype=np.int64)
            blocks.append(Block(segment, segment.rows[own[here]], inside[here], _span(columns), slice(None)))
    return blocks, tuple(infos.values()), nameless


def columns_of(blocks: Sequence[Block], steps: int, tensors: int) -> LazyColumns:
    """Every column any block has, as [steps, tensors], NaN where a layout lacks the tensor."""
    names = dict.fromkeys(name for block in blocks for name in block.segment.records.dtype["tensors"].base.names or ())

    def part(wanted: Iterable[str], begin: int, end: int) -> dict[str, Array]:
        tables = {name: np.full((max(min(end, steps) - begin, 0), tensors), np.nan) for name in wanted}
        for block in blocks:
            block.write(tables, begin, min(end, steps))
        return tables

    def narrow(index: int) -> LazyColumns:
        return columns_of([one for block in blocks for one in block.of_tensor(index, tensors)], steps, 1)

    return LazyColumns(tuple(names), lambda name: part((name,), 0, steps)[name], narrow, part)


def _span(index: Index) -> Index | slice:
    """The same index as a slice where it is one: an order of magnitude faster on a mapped file."""
    whole = len(index) and int(index[-1]) - int(index[0]) == len(index) - 1 and bool(np.all(np.diff(index) == 1))
    return slice(int(index[0]), int(index[-1]) + 1) if whole else index
