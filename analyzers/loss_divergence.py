"""SK202 loss-divergence.

What it reports:    A loss that left the level it had reached and stayed away.
Why it matters:     The run is lost unless something changes: what it does from here on makes it worse or costs compute for nothing.
How it decides:     The median of the last 20 finite losses exceeds the lowest such median so far by more than half of what had been
                    gained since the start, by 6 times the run's own noise and by 10 %, for a fifth of the steps so far (at least
                    20, at most 100) without a break.
Known false alarms: A switch to harder data or another objective; weights re-initialised on purpose.
What to try:        Go back to a checkpoint at or before the last good step; skip the batches in between; resume at a lower rate.
References:         PaLM (Chowdhery et al. 2022, arXiv 2204.02311) restarted about 100 steps back and skipped batches; OPT-175B
                    (Zhang et al. 2022, arXiv 2205.01068) lowered the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, found
from stabkit.analyzers.series import MAD_TO_SIGMA, episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "LossDivergence", "LossDivergenceThresholds"]

RULE = Rule(code="SK202", name="loss-divergence", severity=Severity.ERROR, requires=(("loss", "step"),), min_steps=40)


@dataclass(frozen=True, kw_only=True)
class LossDivergenceThresholds:
    """When a loss has left for good."""

    window: int = 20
    """Finite losses whose median is compared."""
    lost: float = 0.5
    """Share of what had been gained that must be lost again."""
    noise: float = 6.0
    """Rise over the run's own noise."""
    rise: float = 0.1
    """Rise over the best level, as a share of it."""
    shortest: int = 20
    longest: int = 100
    """Bounds of how long it must last, in steps; between them, a fifth of the steps so far."""


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
        gained = np.maximum(np.nanmax(values[: limits.window]) - best, 0.0)
        with np.errstate(invalid="ignore"):
            away = median - best > np.maximum.reduce([limits.lost * gained, limits.noise * noise, limits.rise * np.abs(best)])
        for first, last in episodes(away):
            decided = self._decided(first, last)
            if decided is None:
                continue
            left, level = int(steps[first]), float(best[first])
            good = int(steps[max(0, first - limits.window)])
            yield found(
                RULE,
                message=f"loss left {level:.4g} for {median[decided]:.4g} around step {left} and stayed away for "
                f"{decided - first + 1} steps",
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
                advice=f"Restart from a checkpoint at or before step {good}, at half the rate; if the same batches break it again, "
                "skip them.",
            )  # fmt: skip

    def _decided(self, first: int, last: int) -> int | None:
        limits = self.thresholds
        for i in range(first, last + 1):
            if i - first + 1 >= min(limits.longest, max(limits.shortest, i // 5)):
                return i
        return None


def _levels(values: Array, window: int) -> tuple[Array, Array, Array]:
    """Trailing median, its lowest value at least a window earlier, and the noise there; each [n], NaN at the beginning."""
    n = len(values)
    median, noise = np.full(n, np.nan), np.full(n, np.nan)
    for i in range(window - 1, n):
        recent = values[i - window + 1 : i + 1]
        median[i] = np.median(recent)
        noise[i] = MAD_TO_SIGMA * np.median(np.abs(recent - median[i]))
    best, spread = np.full(n, np.nan), np.full(n, np.nan)
    lowest, at = np.inf, 0.0
    for i in range(2 * window - 1, n):
        if median[i - window] < lowest:
            lowest, at = median[i - window], noise[i - window]
        best[i], spread[i] = lowest, at
    return median, best, spread
