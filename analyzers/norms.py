"""The gradient norm of a run, and the limit that its own past suggests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stabkit.analyzers.series import MAD_TO_SIGMA, Flags, Indices, TrailingLevel, log_of, trailing_level
from stabkit.runlog import RunLog, Series

__all__ = ["FLOOR", "LEAST", "SPIKE", "WINDOW", "BrokenNorm", "first_in_norm", "gradient_norm", "norm_level", "norm_rose",
           "usual_clip"]  # fmt: skip

LEAST = 20
WINDOW = 100
FLOOR = 0.1
"""Smallest spread of log(norm) taken seriously."""
SPIKE = 8.0
"""Robust z-score of log(norm) that is a spike by itself; from half of it on the norm is up."""


def gradient_norm(run: RunLog, least: int = LEAST) -> Series:
    """The norm before clipping; the used one where the other is unknown in all of the first `least` steps, never judged.

    Logs of other tools often have one of the two.
    """
    if not run.has("grad_norm_used"):
        return run.series("grad_norm")
    used = run.series("grad_norm_used")
    if not run.has("grad_norm") or np.isnan(run.series("grad_norm").values[:least]).all():
        return used
    norm = run.series("grad_norm")
    known = np.logical_or.accumulate(~np.isnan(used.values))
    # A gradient written to by hand has no norm from before; where nothing clipped it either, it is what the step used.
    clipped = run.has("clip_coefficient") and ~np.isnan(run.series("clip_coefficient").values)
    values = np.where(np.isnan(norm.values) & ~np.asarray(clipped), used.values, norm.values)
    return replace(norm, values=np.where(known, values, np.nan))


def norm_level(
    run: RunLog, window: int = WINDOW, score: float = SPIKE, floor: float = FLOOR, least: int = LEAST
) -> tuple[Series, TrailingLevel]:
    """The gradient norm where it is known, and log(norm) against its own recent past."""
    norm = gradient_norm(run, least)
    known = ~np.isnan(norm.values)
    norm = replace(norm, steps=norm.steps[known], values=norm.values[known])
    return norm, trailing_level(log_of(norm.values), window, score, floor, least, steps=norm.steps)


def norm_rose(run: RunLog, steps: Indices) -> Flags:
    """Of each of the steps, whether the gradient norm stood above its level there: by half of what would be a spike."""
    if not (run.has("grad_norm_used") or run.has("grad_norm")):
        return np.zeros(len(steps), dtype=bool)
    norm, trailing = norm_level(run)
    with np.errstate(invalid="ignore"):
        up = (trailing.score > SPIKE / 2) | np.isinf(norm.values)
    return np.isin(steps, norm.steps[up])


def usual_clip(run: RunLog, step: int, window: int = WINDOW) -> float | None:
    """Median + 3 * 1.4826 * MAD of the norms of the steps before `step`: the limit to clip at; None where none is known."""
    if not (run.has("grad_norm_used") or run.has("grad_norm")):
        return None
    norm = gradient_norm(run)
    before = int(np.searchsorted(norm.steps, step))
    recent = norm.values[max(0, before - window) : before]
    recent = recent[np.isfinite(recent)]
    if not len(recent):
        return None
    middle = float(np.median(recent))
    return middle + 3 * MAD_TO_SIGMA * float(np.median(np.abs(recent - middle)))


@dataclass(frozen=True)
class BrokenNorm:
    """A global norm that was not finite.

    Attributes:
        step: At which step.
        observed: It.
        told: At which step it was known to be no skipped one.
        certain: Whether that is known at all.
    """

    step: int
    observed: float
    told: int
    certain: bool


def first_in_norm(run: RunLog) -> BrokenNorm | None:
    """The first global norm that was not finite in a log of another tool, those of skipped steps left out.

    NaN counts where the log had a norm beside nine of ten losses so far, and ten in all; else it may stand for nothing
    logged. Where the loss scale is known and the skips are not, a fall of the scale at this record or the next says that the
    step was skipped.
    """
    if run.source == "stabkit" or not run.has("grad_norm"):
        return None
    norm = run.series("grad_norm").values
    loss = run.stream.step_values.get("loss_reduction", np.ones(len(norm))) > 0
    beside = np.cumsum(loss & ~np.isnan(norm)) >= np.maximum(0.9 * (np.cumsum(loss) - 1), 10)
    bad = np.isinf(norm) | (np.isnan(norm) & loss & beside)
    later = 0
    if run.has("skipped"):
        bad &= run.series("skipped").values == 0
    elif run.has("loss_scale"):
        scale = run.series("loss_scale").values
        fell = np.append(False, scale[1:] < scale[:-1])
        bad &= ~fell & ~np.append(fell[1:], True)  # of the last record it is not known yet
        later = 1
    rows = np.flatnonzero(bad)
    if not len(rows):
        return None
    row = int(rows[0])
    certain = run.has("skipped") or run.has("loss_scale")
    return BrokenNorm(int(run.steps[row]), float(norm[row]), int(run.steps[row + later]), certain)
