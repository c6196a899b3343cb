"""Whether a loss rose because of what it met, not because of what training made of the weights."""

from __future__ import annotations

import numpy as np

from stabkit.analyzers.series import Indices, known_max
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["TOP", "jump_of_the_data"]

NEAR = 0.25
"""A loss within this share of the whole rise from its best level had not begun to rise."""
TOP = 5
"""Records from the jump on whose largest loss is its height."""
RECENT = 100
"""Measured steps before the jump, whose largest update of a tensor is a usual one,"""
USUAL = 1.5
"""or one so many times as large."""


def jump_of_the_data(
    run: RunLog, steps: Indices, values: Array, rows: tuple[int, int], best: float, level: float
) -> int | None:
    """The row at which a loss jumped to where it stayed although the weights had moved no further than usual; None else.

    A loss of step t is that of the weights that step t - 1 left. Where that step moved no tensor further than the largest of
    its recent ones, and the loss was at its level until then and is at its height at once, the weights did not do it: what they
    met is different.

    Args:
        run: With its updates.
        steps: [n] of the losses.
        values: [n] the losses.
        rows: The first row in which the jump may lie, and the last.
        best: The level that the loss left.
        level: Where it stayed.
    """
    begin, end = rows
    higher = np.flatnonzero(values[begin : end + 1] >= level)
    if not len(higher):
        return None
    jump = begin + int(higher[0])
    before = values[max(0, jump - TOP) : jump]
    near = best + NEAR * (level - best)
    if not len(before) or values[jump - 1] > near or float(np.median(before)) > near:
        return None
    return jump if _moved_as_usual(run, int(steps[jump]) - 1) else None


def _moved_as_usual(run: RunLog, step: int) -> bool:
    """Whether a step was measured, and moved no tensor further than 1.5 times the largest of its recent updates."""
    if not run.has("update_norm", "tensor"):
        return False
    table = run.table("update_norm")
    row = int(np.searchsorted(table.steps, step))
    past = table.values[max(0, row - RECENT) : row]
    if row == len(table.steps) or table.steps[row] != step or len(past) < RECENT // 5:
        return False
    with np.errstate(invalid="ignore"):
        return not bool((table.values[row] > USUAL * known_max(past)).any())
