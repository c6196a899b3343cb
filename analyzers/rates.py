"""What several rules ask about the learning rate."""

from __future__ import annotations

import math

import numpy as np

from stabkit.analyzers.series import Indices, known_max
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["highest_rates", "rate_at", "rows_of"]


def highest_rates(run: RunLog) -> Array:
    """The highest rate of any parameter group at each step [n]; NaN where none is known."""
    return known_max(run.table("lr").values, axis=1)


def rate_at(run: RunLog, step: int) -> float:
    """The highest rate at a step; NaN where it is not known."""
    row = int(np.searchsorted(run.steps, step))
    known = run.has("lr", "group") and row < len(run.steps) and run.steps[row] == step
    return float(highest_rates(run)[row]) if known else math.nan


def rows_of(run: RunLog, steps: Indices) -> Indices:
    """The row in `run.steps` of each measured step; the next one where the step itself has no record."""
    return np.searchsorted(run.steps, steps).clip(0, len(run.steps) - 1)
