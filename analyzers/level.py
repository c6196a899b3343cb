"""The recent level of the loss, shared by the rules that ask whether it left that level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.analyzers.series import trailing_level
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["LossLevel", "loss_level"]

WINDOW = 100
LEAST = 20
FLOOR_OF_LOG = 0.01
"""Spread of log(loss) below which a run's own noise is not believed to be smaller."""


@dataclass(frozen=True)
class LossLevel:
    """The loss with its recent level.

    Attributes:
        steps: int64 [n].
        values: float64 [n], the loss.
        level: float64 [n], recent median, outliers left out, in the loss's own unit.
        score: float64 [n], robust z-score; of log(loss) where `logarithmic`.
        logarithmic: Whether the loss is positive throughout.
    """

    steps: NDArray[np.int64]
    values: Array
    level: Array
    score: Array
    logarithmic: bool


def loss_level(run: RunLog, limit: float) -> LossLevel:
    """The loss of a run against its own recent past.

    A loss that is ever zero or negative (a density, a reward) is scored as it is, with a floor from its own first noise.
    """
    series = run.series("loss")
    values = series.values
    finite = values[np.isfinite(values)]
    # Causal all the same: the first LEAST values decide, and no value is scored before them.
    logarithmic = bool(len(finite)) and bool((finite[:LEAST] > 0).all())
    if logarithmic:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.where(values > 0, values, np.nan))
        trailing = trailing_level(logs, WINDOW, limit, FLOOR_OF_LOG, LEAST)
        return LossLevel(series.steps, values, np.exp(trailing.level), trailing.score, True)
    floor = FLOOR_OF_LOG * float(np.median(np.abs(finite[:LEAST]))) if len(finite) else 0.0
    trailing = trailing_level(values, WINDOW, limit, max(floor, np.finfo(float).tiny), LEAST)
    return LossLevel(series.steps, values, trailing.level, trailing.score, False)
