"""Columns that are read when they are asked for: most rules want a few of the many a log holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from stabkit.metric import Array
from stabkit.runlog.format import COLUMN_NAMES

__all__ = ["LazyColumns", "OrMissing", "of_tensor"]


class LazyColumns(Mapping[str, Array]):
    """Arrays by name, each made at the first look and kept.

    Args:
        names: The names there are.
        read: Makes the array of a name.
        narrow: Makes the columns of one tensor, given its index, without reading those of the others.
    """

    def __init__(
        self, names: tuple[str, ...], read: Callable[[str], Array], narrow: Callable[[int], Mapping[str, Array]] | None = None
    ) -> None:
        self._names, self._read = dict.fromkeys(names), read
        self.narrow = narrow
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
