"""The loss, as the rules that ask whether it left its level see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.norms import norm_rose
from stabkit.analyzers.series import Flags, Indices, TrailingLevel, log_of, trailing_level
from stabkit.analyzers.usual import lasting, unusual
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["LossLevel", "broken_losses", "loss_level", "skipped_steps"]

WINDOW = 100
LEAST = 20
FLOOR = 0.01
"""Smallest spread believed: of log(loss), or of the loss as a share of the median size of its first values."""
LASTING_ALONE = 5
"""So many losses in a row above the limit bear each other out: by chance, where one in 20 begins a run, in 1 of 3 million."""


@dataclass(frozen=True)
class LossLevel:
    """The loss with its recent level.

    Attributes:
        steps: int64 [n].
        values: float64 [n], the loss.
        level: float64 [n], recent median, outliers left out, in the loss's own unit.
        score: float64 [n], robust z-score; of log(loss) where `logarithmic`.
        logarithmic: bool [n], whether the loss has been positive so far.
        unusual: bool [n], which of the values that pass the limit are no habit of the run.
        borne_out: bool [n], which of these are told: not by one number alone.
    """

    steps: Indices
    values: Array
    level: Array
    score: Array
    logarithmic: Flags
    unusual: Flags
    borne_out: Flags


def loss_level(run: RunLog, limit: float, alone: float) -> LossLevel:
    """The loss of a run against its own recent past.

    An outlier of a score above `limit` is kept out of the level. It can be told if something bears it out: a score above
    `alone`, a gradient norm that stands above its own level too, or four such losses in a row before it.

    Records without a loss are left out: a log may have other quantities more often. It is scored by its logarithm. From the
    first value on that is zero or negative (a density, a reward) the loss itself is.
    """
    series = run.series("loss")
    known = ~np.isnan(series.values)
    steps, values = series.steps[known], series.values[known]
    with np.errstate(invalid="ignore"):
        logarithmic = ~np.logical_or.accumulate(np.isfinite(values) & (values <= 0))
    by_log = trailing_level(log_of(values), WINDOW, limit, FLOOR, LEAST, steps=steps)
    level, score = np.exp(by_log.level), by_log.score
    news, told = _unusual(by_log, limit, alone, run, steps)
    if not logarithmic.all():
        first = values[np.isfinite(values)][:LEAST]
        plain = trailing_level(values, WINDOW, limit, FLOOR * float(np.median(np.abs(first))), LEAST, steps=steps)
        level, score = np.where(logarithmic, level, plain.level), np.where(logarithmic, score, plain.score)
        plain_news, plain_told = _unusual(plain, limit, alone, run, steps)
        news, told = np.where(logarithmic, news, plain_news), np.where(logarithmic, told, plain_told)
    return LossLevel(steps, values, level, score, logarithmic, news, told)


def _unusual(trailing: TrailingLevel, limit: float, alone: float, run: RunLog, steps: Indices) -> tuple[Flags, Flags]:
    """Which values pass the limit and are no habit of the run, and which of them are borne out."""
    with np.errstate(invalid="ignore"):
        out, sure = trailing.score > limit, trailing.score > alone
    if (out & ~sure).any():
        sure |= out & norm_rose(run, steps)
    news = unusual(trailing.excess, out)
    return news, unusual(trailing.excess, sure) | lasting(out, LASTING_ALONE) & news


def broken_losses(run: RunLog) -> Flags:
    """Of each step, whether a loss was seen that is not finite, and the step was not skipped for it.

    A log that does not say whether a loss was seen writes NaN for a missing one: there only infinities count.
    """
    missing = np.full(len(run.steps), np.nan)
    losses = run.stream.step_values.get("loss", missing)
    seen = run.stream.step_values.get("loss_reduction")
    broken: Flags = np.isinf(losses) if seen is None else (seen > 0) & ~np.isfinite(losses)
    return broken & ~skipped_steps(run)


def skipped_steps(run: RunLog) -> Flags:
    """Of each step, whether a GradScaler skipped it."""
    skipped = run.stream.step_values.get("skipped")
    return np.zeros(len(run.steps), dtype=bool) if skipped is None else skipped == 1
