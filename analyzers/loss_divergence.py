"""SK202 loss-divergence.

What it reports:    A loss that left the level it had reached and stayed away.
Why it matters:     The run is lost unless something changes: what it does from here on makes it worse or costs compute
                    for nothing.
How it decides:     The median of the last 20 finite losses exceeds the lowest such median so far by more than half of
                    what had been gained since the start, or is back where it was within the first 30 % of the run so
                    far; and by 6 times the run's own noise and by 10 %; for a fifth of the records so far (at least
                    20, at most 100) without a break. A loss that is back at an early level but falls again is waited
                    for: by a third of its excess while the time since doubles, or, after a jump to the very first
                    loss as of weights made anew, as fast as it first did. Departures up to 100 records apart are one.
                    Information only where the loss jumped at once, has not risen since, and the step before the jump
                    moved no tensor further than 1.5 times the largest of its last 100 updates: then it meets other data.
Known false alarms: A switch to harder data or another objective, in a log without the updates of the step before. Weights
                    made anew on purpose, if they learn slower.
What to try:        Go back to a checkpoint at or before the last good step; skip the batches in between; resume at a
                    lower rate.
References:         PaLM (Chowdhery et al. 2022, arXiv 2204.02311) restarted about 100 steps back and skipped batches;
                    OPT-175B (Zhang et al. 2022, arXiv 2205.01068) lowered the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.changed_data import TOP, jump_of_the_data
from stabkit.analyzers.series import MAD_TO_SIGMA, Flags, Indices, episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "LossDivergence", "LossDivergenceThresholds"]

RULE = Rule(code="SK202", name="loss-divergence", severity=Severity.ERROR, requires=(("loss", "step"),), min_steps=40)


AS_AT_FIRST = 0.8
"""Weights made anew begin with another draw, and at another rate: within so much of the first loss and the first descent."""


@dataclass(frozen=True, kw_only=True)
class LossDivergenceThresholds(Thresholds):
    """When a loss has left for good."""

    window: int = 20
    """Finite losses whose median is compared."""
    lost: float = 0.5
    """Share of what had been gained that must be lost again,"""
    undone: float = 0.3
    """or the share of the run to whose level the loss must be back: late in a run what is gained is small, and took long."""
    noise: float = 6.0
    """Rise over the run's own noise."""
    rise: float = 0.1
    """Rise over the best level, as a share of it."""
    share: float = 0.2
    """How long it must last, as a share of the records so far."""
    shortest: int = 20
    """At least so many losses."""
    longest: int = 100
    """At most so many. Departures that lie no further apart are one."""


class LossDivergence:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: LossDivergenceThresholds | None = None) -> None:
        self.thresholds = thresholds or LossDivergenceThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per departure that lasted."""
        limits = self.thresholds
        series = run.series("loss")
        keep = np.isfinite(series.values)
        steps, values = series.steps[keep], series.values[keep]
        if len(values) < 2 * limits.window:
            return
        median, best, noise = _levels(values, limits.window)
        with np.errstate(invalid="ignore", over="ignore"):
            gained = np.maximum(values[: limits.window].max() - best, 0.0)
            lost = (median - best > limits.lost * gained) | (median > _level_at(median, limits.undone))
            away = lost & (median - best > np.maximum(limits.noise * noise, limits.rise * np.abs(best)))
            most = median - best > limits.lost * gained
        for first, decided, last in self._departures(away, most, values, median, median - best):
            left, level = int(steps[first]), float(best[first])
            good = int(steps[first - limits.window])
            span = max(1, first - limits.window + 1), first
            jump = jump_of_the_data(run, steps, values, span, level, float(median[decided]))
            if jump is not None and median[decided : last + 1].max() <= values[jump : jump + TOP].max():
                yield self._of_the_data(steps, median, (jump, decided, last), level)
                continue
            yield found(
                RULE,
                message=f"loss left {level:.4g} for {median[decided]:.4g} around step {left} and stayed away for "
                f"{steps[decided] - steps[first - 1]} steps",
                first_step=int(steps[decided]),
                last_step=int(steps[last]),
                event_step=left,
                last_good_step=good,
                state=State.ONGOING if last == len(steps) - 1 else State.RECOVERED,
                evidence=(
                    Evidence(metric="loss", observed=float(median[decided]), expected=level, step=int(steps[decided]),
                             note=f"median of {limits.window}, against its lowest so far"),
                    Evidence(metric="loss noise", observed=float(noise[decided]), step=int(steps[decided]), note="1.4826 MAD"),
                ),
                advice=f"Restart from a checkpoint at or before step {good}, at 0.5 times the rate; if the same batches break "
                "it again, skip them.",
                remedy={"lr_factor": 0.5},
            )  # fmt: skip

    def _of_the_data(self, steps: Indices, median: Array, rows: tuple[int, int, int], level: float) -> Finding:
        """The finding where the weights had moved as usual when the loss jumped, and it has not risen since."""
        jump, decided, last = rows
        jumped = int(steps[jump])
        return found(
            RULE,
            severity=Severity.INFO,
            message=f"loss jumped from {level:.4g} at step {jumped} and stays at {median[decided]:.4g}, though step "
            f"{jumped - 1} moved the weights no further than usual: it meets other data",
            first_step=int(steps[decided]),
            last_step=int(steps[last]),
            event_step=jumped,
            last_good_step=jumped - 1,
            state=State.ONGOING if last == len(steps) - 1 else State.RECOVERED,
            evidence=(
                Evidence(metric="loss", observed=float(median[decided]), expected=level, step=int(steps[decided]),
                         note=f"median of {self.thresholds.window}, against its lowest so far"),
            ),
            advice=f"Nothing, if the data were to change at step {jumped}; else look at the batches from there on.",
        )  # fmt: skip

    def _departures(self, away: Flags, most: Flags, values: Array, median: Array, excess: Array) -> list[tuple[int, int, int]]:
        """(first, decided, last) index of each departure that lasted, those that follow closely joined to the one before."""
        limits = self.thresholds
        found_so_far: list[tuple[int, int, int]] = []
        for first, last in episodes(away):
            i = np.arange(first, last + 1)
            needed = np.clip((limits.share * i).astype(int), limits.shortest, limits.longest)
            returning = 3 * excess[i] < 2 * excess[(i + first) // 2]
            stays = most[i] | ~(returning | _begins_anew(values, median, first, i))
            long_enough = np.flatnonzero((i - first + 1 >= needed) & stays)
            if not len(long_enough):
                continue
            before = found_so_far[-1] if found_so_far else None
            if before and first - before[2] <= limits.longest:
                found_so_far[-1] = (before[0], before[1], last)
            else:
                found_so_far.append((first, first + int(long_enough[0]), last))
        return found_so_far


def _level_at(median: Array, share: float) -> Array:
    """[n] the lowest median up to a share of the way to each record, NaN where there is none yet."""
    return np.asarray(np.fmin.accumulate(median)[(share * np.arange(len(median))).astype(int)])


def _begins_anew(values: Array, median: Array, first: int, rows: Indices) -> Flags:
    """Whether a loss that left at `first` jumped to the very first loss and has come down since as fast as it first did."""
    window = LossDivergenceThresholds.window
    jumped = values[max(0, first - window) : first + 1].max() >= AS_AT_FIRST * values[0] > 0
    then = np.maximum(rows - first + window // 2, window - 1)
    return np.asarray(jumped & (median[rows] <= median[then] / AS_AT_FIRST))


def _levels(values: Array, window: int) -> tuple[Array, Array, Array]:
    """Trailing median, its lowest value at least a window earlier, and the noise there; each [n], NaN at the beginning."""
    n = len(values)
    recent = sliding_window_view(values, window)
    with np.errstate(over="ignore", invalid="ignore"):
        medians = np.median(recent, axis=1)
        noises = MAD_TO_SIGMA * np.median(np.abs(recent - medians[:, None]), axis=1)
    median, best, spread = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    median[window - 1 :] = medians
    lowest = np.minimum.accumulate(medians[:-window])
    news = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    at = np.maximum.accumulate(np.where(news, np.arange(len(lowest)), 0))
    best[2 * window - 1 :], spread[2 * window - 1 :] = lowest, noises[at]
    return median, best, spread
