"""The order of rows: those of a resumed run replace what they repeat, a run begun anew is another attempt."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ordered", "latest", "order"]

Index = NDArray[np.int64]

_SCATTERED = 0.1
"""Share of rows before which the step falls, from which on this is disorder, not a number of resumes."""
_FEW = 3
"""So many falls are never disorder."""
_REPEATED = 3
"""Rows that are gone over again and make a fall a resume, though none has the very same step."""


@dataclass(frozen=True)
class Ordered:
    """Which rows count.

    Attributes:
        attempt: int64 [rows]: the attempt each row belongs to; -1 for a row that counts nowhere.
        attempts: How many there are.
        notes: By attempt, what there is to say; those of the whole log under -1.
    """

    attempt: Index
    attempts: int
    notes: dict[int, list[str]]


def order(steps: Index, known: NDArray[np.bool_], leading: NDArray[np.bool_]) -> Ordered:
    """Tell apart resumes, restarts and mere disorder.

    Where the step falls back to the beginning the run was started anew: another attempt. Where it falls back less, and steps
    are gone over again, the run was resumed: the rows it goes over are replaced. Where it falls in more than a tenth of
    the rows, the rows are merely out of order.

    Args:
        steps: int64 [rows]: the step of each row in the order of the log.
        known: bool [rows]: whether it has one.
        leading: bool [rows]: the rows by which the order is told, those with a loss.
    """
    attempt = np.where(known, 0, -1).astype(np.int64)
    notes: dict[int, list[str]] = {-1: []}
    at = np.flatnonzero(leading & known)
    led = steps[at]
    falls = np.flatnonzero(np.diff(led) < 0) + 1
    if len(falls) > max(_FEW, _SCATTERED * len(led)):
        notes[-1].append(f"the rows are out of order ({len(falls):,} times a step is followed by a smaller one): sorted")
        return Ordered(attempt, 1, notes)
    ups = np.diff(led)
    cadence = int(np.median(ups[ups > 0])) if np.any(ups > 0) else 1
    bounds = [*falls.tolist(), len(led)]
    current, begun, disordered = 0, 0, 0
    for fall, end in pairwise(bounds):
        again, reached = int(led[fall]), int(led[fall:end].max())
        first_row = _from(steps, known, at, fall)
        before = led[begun:fall]
        gone_over = before[(before >= again) & (before <= reached)]
        if again <= max(cadence, 1) and again <= max(int(before.min()), cadence):
            attempt[first_row:] = np.where(known[first_row:], current + 1, -1)
            current, begun = current + 1, fall
        elif len(gone_over) >= _REPEATED or np.isin(gone_over, led[fall:end]).any():
            before_it = steps[:first_row]
            old = np.flatnonzero((attempt[:first_row] == current) & (before_it >= again) & (before_it <= reached))
            attempt[old] = -1
            notes.setdefault(current, []).append(
                f"resumed at step {again}: {np.sum(leading[old])} rows up to step {reached} were replaced; the later ones count"
            )
            if before.max() > reached:
                notes[current].append(
                    f"steps {reached + 1} to {before.max()} were logged before the run was resumed at step {again}, and it has "
                    "not come as far again"
                )
        else:
            disordered += 1
    if disordered:
        notes[-1].append(f"{disordered} row{'s are' if disordered > 1 else ' is'} out of order: sorted")
    return Ordered(attempt, current + 1, notes)


def _from(steps: Index, known: NDArray[np.bool_], at: Index, fall: int) -> int:
    """The first row of what begins at a fall: an evaluation at its first step may come before its first loss."""
    row, previous = int(at[fall]), int(at[fall - 1])
    while row - 1 > previous and (not known[row - 1] or steps[row - 1] <= steps[at[fall]]):
        row -= 1
    return row


def latest(steps: Index) -> Index:
    """int64: where the last row of each step is, by increasing step."""
    distinct, last = np.unique(steps[::-1], return_index=True)
    del distinct
    return np.asarray(len(steps) - 1 - last, dtype=np.int64)
