"""One reading of the tensors for all rules: a block of steps at a time, in an amount of memory that no length of a run adds to.

A rule that looks at every tensor at every step says so with a *sweep*: what it must see, and what it keeps of it. The driver
lets all sweeps of a run go over it together, so that the log is read once. A rule that is put before a run alone reads alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from stabkit.analyzers.series import Flags
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows, in_blocks

__all__ = ["Carry", "Make", "Sweep", "Sweeper", "sweep_together", "swept"]


class Sweep(Protocol):
    """What is kept of the tensors' numbers, block by block, oldest first."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Quantities of tensors that it asks for."""

    def read(self, rows: Rows) -> None:
        """Take in the next block."""


Kept = TypeVar("Kept", bound=Sweep)
Make = Callable[[RunLog], Sweep]
"""Begins a sweep of a run."""


@runtime_checkable
class Sweeper(Protocol):
    """A rule that has sweeps."""

    def sweeps(self) -> tuple[Make, ...]:
        """What begins each of them, given the run. It may raise `NotApplicable`, as the rule will then."""


def swept(run: RunLog, make: Callable[[RunLog], Kept]) -> Kept:
    """A sweep that has seen the whole run; the same one for all who ask.

    Raises:
        Exception: whatever the sweep raised.
    """
    sweep_together(run, (make,))
    found: Any = run.memo[make]
    if isinstance(found, Exception):
        raise found
    kept: Kept = found
    return kept


def sweep_together(run: RunLog, makes: Iterable[Make]) -> None:
    """Let those of these sweeps that have not seen the run go over it together. One that breaks does not stop the others."""
    going: dict[Make, Sweep] = {}
    for make in dict.fromkeys(makes):
        if make not in run.memo:
            try:
                run.memo[make] = going[make] = make(run)
            except Exception as error:
                run.memo[make] = error
    if not going:
        return
    for rows in in_blocks(run, [metric for sweep in going.values() for metric in sweep.metrics]):
        for make, sweep in tuple(going.items()):
            try:
                sweep.read(rows)
            except Exception as error:
                run.memo[make] = error
                del going[make]


class Carry:
    """The last rows of the blocks before, put in front of each new one.

    Args:
        most: How many rows, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: Any = None

    def rows(self, rows: Array | Flags) -> Any:
        """The rows that came before, of which there are none before the first block."""
        return rows[:0] if self._last is None else self._last

    def __call__(self, rows: Array | Flags) -> Any:
        """The rows [m, ...] with those that came before in front; how many there are of these is the difference."""
        joined = np.concatenate([self.rows(rows), rows])
        self._last = joined[max(0, len(joined) - self._most) :].copy()
        return joined
