"""What several rules ask about the learning rate."""

from __future__ import annotations

import math

import numpy as np

from stabkit.analyzers.series import Indices, known_max
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["beta2_of_groups", "beta2_of_tensors", "groups_of", "highest_rates", "of_tensors", "rate_at", "rows_of"]


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


def beta2_of_tensors(run: RunLog, rows: Indices) -> Array:
    """The beta2 of each tensor at each of the rows [rows, tensors], from its group; NaN where unknown or not below 1."""
    return beta2_of_groups(run, rows)[:, groups_of(run, "beta2")]


def beta2_of_groups(run: RunLog, rows: Indices) -> Array:
    """The beta2 of each parameter group at each of the rows [rows, groups]; NaN where unknown or not below 1."""
    beta2 = run.table("beta2").values[rows]
    return np.where((beta2 >= 0) & (beta2 < 1), beta2, np.nan)


def of_tensors(run: RunLog, metric: str, rows: Indices) -> Array:
    """A group metric of each tensor's group at each of the rows [rows, tensors]; a tensor of no known group has the first's."""
    values: Array = run.table(metric).values[np.ix_(rows, groups_of(run, metric))]
    return values


def groups_of(run: RunLog, metric: str) -> Indices:
    """The column of each tensor [tensors] in the table of a group metric; a tensor of no known group has the first's."""
    last = run.table(metric).values.shape[1] - 1
    return np.array([min(t.group or 0, last) for t in run.tensors], dtype=np.int64)
