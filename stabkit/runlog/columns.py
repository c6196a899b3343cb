"""Columns that are read when they are asked for, whole or some rows of them: a log may hold more than there is memory for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from stabkit.metric import Array
from stabkit.runlog.format import COLUMN_NAMES

__all__ = ["LazyColumns", "OrMissing", "of_rows", "of_tensor", "part_of"]

Part = Callable[[Iterable[str], int, int], Mapping[str, Array]]
"""Makes some rows of some columns, given the columns' names, the first row and the one after the last."""


class LazyColumns(Mapping[str, Array]):
    """Arrays by name, each made at the first look and kept.

    Args:
        names: The names there are.
        read: Makes the array of a name.
        narrow: Makes the columns of one tensor, given its index, without reading those of the others.
        part: Makes some rows of some columns without reading the others.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        read: Callable[[str], Array],
        narrow: Callable[[int], Mapping[str, Array]] | None = None,
        part: Part | None = None,
    ) -> None:
        self._names, self._read = dict.fromkeys(names), read
        self.narrow, self.part = narrow, part
        self._kept: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._kept:
            self._kept[name] = self._read(name)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without making the array, as Mapping would

    def held(self, name: str) -> bool:
        """Whether the whole array of a name has been made."""
        return name in self._kept


class OrMissing(Mapping[str, Array]):
    """Columns by name; one of the vocabulary that was not stored is NaN everywhere."""

    def __init__(self, columns: Mapping[str, Array], shape: tuple[int, int]) -> None:
        self._columns, self._shape = columns, shape

    def __getitem__(self, name: str) -> Array:
        if name not in self._columns and name in COLUMN_NAMES:
            return np.full(self._shape, np.nan)
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMN_NAMES)

    def __len__(self) -> int:
        return len(COLUMN_NAMES)


def of_tensor(columns: Mapping[str, Array], index: int) -> Mapping[str, Array]:
    """The columns of one tensor, each [steps, 1]: of a log of gigabytes only what belongs to it is read, where that can be."""
    if isinstance(columns, LazyColumns) and columns.narrow:
        return columns.narrow(index)
    return LazyColumns(tuple(columns), lambda name: columns[name][:, index : index + 1])


def of_rows(columns: Mapping[str, Array], names: Iterable[str], begin: int, end: int) -> dict[str, Array]:
    """Rows begin to end, not included, of those of the named columns that there are, each [end - begin, tensors].

    The columns are read together: in the file their numbers lie side by side.
    """
    wanted = [name for name in names if name in columns]
    if not isinstance(columns, LazyColumns) or columns.part is None:
        return {name: columns[name][begin:end] for name in wanted}
    found = {name: columns[name][begin:end] for name in wanted if columns.held(name)}
    rest = [name for name in wanted if name not in found]
    return {**found, **columns.part(rest, begin, end)} if rest else found


def part_of(columns: Mapping[str, Array], begin: int, end: int) -> LazyColumns:
    """The columns of some rows only."""
    return LazyColumns(
        tuple(columns),
        lambda name: of_rows(columns, (name,), begin, end)[name],
        part=lambda names, first, last: of_rows(columns, names, begin + first, min(begin + last, end)),
    )
