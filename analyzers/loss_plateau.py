"""SK507 loss-plateau.

What it reports:    A loss that is where it began: the run does not learn.
Why it matters:     Nothing breaks and nothing is won. Most often the model puts out the same for every input (dead or
                    saturated units, a rate too small or far too large), or labels and inputs do not belong together.
How it decides:     After at least 200 steps and 30 losses the median of the last 10 is above 98 % of where the loss began,
                    while it spreads by less than 5 %: a loss that scatters more may be falling unseen. That for 10 losses
                    in a row. It began at its first value or at the median of its first 10 steps, whichever is lower. Losses
                    that have been 0 or negative are not judged, nor logs that begin later than one record into the run, nor
                    steps at a rate of 0. A run that learned and then lost all of it is told as well; one that is stuck half
                    way is not: no loss by itself says how low it could be.
Known false alarms: A model that was trained before, on data like these; both sides of a GAN; tasks that are learned all at
                    once after a long rest (modular arithmetic, copying).
What to try:        See whether a single batch can be learned by heart. Then the rate: updates of 1/1000 of the weights are
                    usual.
References:         Amazon SageMaker Debugger, LossNotDecreasing: a fall below 0.1 % between 10 steps, which healthy runs
                    show all the time; hence the comparison with the start. Untrained classifiers sit at log(classes), where
                    their loss hardly scatters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates
from stabkit.analyzers.series import MAD_TO_SIGMA, Flags, Indices, episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

__all__ = ["RULE", "LossPlateau", "LossPlateauThresholds"]

RULE = Rule(code="SK507", name="loss-plateau", severity=Severity.INFO, requires=(("loss", "step"),), min_steps=39)


@dataclass(frozen=True, kw_only=True)
class LossPlateauThresholds(Thresholds):
    """When a loss has not moved."""

    window: int = 10
    """Losses whose median is compared."""
    start: int = 10
    """Steps that are the start; of a log with fewer records the first loss is."""
    steps: int = 200
    """Steps a run is given."""
    losses: int = 30
    """Losses it is given, where they are logged more rarely."""
    level: float = 0.98
    """Median over that of the start: a fall of 2 % is not seen by eye in a loss that spreads by 1 %."""
    spread: float = 0.05
    """1.4826 MAD over median, above which nothing can be said."""
    lasting: int = 10
    """Losses in a row for which that holds."""


class LossPlateau:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: LossPlateauThresholds | None = None) -> None:
        self.thresholds = thresholds or LossPlateauThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: where it had lasted for the first time."""
        limits = self.thresholds
        steps, values = _judged(run)
        if len(values) < RULE.min_steps:
            raise NotApplicable(f"{len(values)} losses of steps at a rate above 0; needs {RULE.min_steps}")
        if steps[0] > max(limits.start, 2 * (steps[1] - steps[0])):
            raise NotApplicable(f"the losses begin at step {steps[0]}")
        start = values[: int(np.searchsorted(steps, steps[0] + limits.start))]
        first = float(min(start[0], np.median(start)))
        median, flat = self._flat(steps, values, first)
        lasted = [(a, b) for a, b in episodes(flat) if b - a + 1 >= limits.lasting]
        if not lasted:
            return
        row = lasted[0][0] + limits.lasting - 1
        step, level, last = int(steps[row]), float(median[row]), lasted[-1][1]
        never = not (median[: row + 1] <= limits.level * first).any()
        left = int(steps[0 if never else lasted[0][0]])
        yield found(
            RULE,
            message=f"the loss is at {level:.4g} at step {step}, where it began ({first:.4g}): the run does not learn",
            first_step=step,
            last_step=int(steps[last]),
            event_step=left,
            last_good_step=left - 1,
            state=State.ONGOING if last == len(steps) - 1 else State.RECOVERED,
            evidence=(
                Evidence(metric="loss", observed=level, expected=limits.level * first, step=step,
                         note=f"median of {limits.window}, against its start"),
            ),
            advice=_advice(run, step),
        )  # fmt: skip

    def _flat(self, steps: Indices, values: Array, first: float) -> tuple[Array, Flags]:
        """Trailing medians [n], and where they say that the loss is where it began."""
        limits, n = self.thresholds, len(values)
        recent = sliding_window_view(values, limits.window)
        median, flat = np.full(n, np.nan), np.zeros(n, dtype=bool)
        median[limits.window - 1 :] = np.median(recent, axis=1)
        spread = MAD_TO_SIGMA * np.median(np.abs(recent - median[limits.window - 1 :, None]), axis=1)
        known = median[limits.window - 1 :]
        flat[limits.window - 1 :] = (known > limits.level * first) & (known < 2 * first) & (spread < limits.spread * known)
        flat &= (np.arange(n) >= limits.losses - 1) & (steps - steps[0] >= limits.steps - 1)
        return median, flat & np.logical_and.accumulate(values > 0)


def _judged(run: RunLog) -> tuple[Indices, Array]:
    """Steps and losses that are finite, of steps whose rate is not known to be 0."""
    loss = run.series("loss")
    keep = np.isfinite(loss.values)
    if run.has("lr", "group") and len(loss.steps) == len(run.steps):
        keep &= ~(highest_rates(run) == 0)
    return loss.steps[keep], loss.values[keep]


def _advice(run: RunLog, step: int) -> str:
    single = "See whether a single batch can be learned by heart; if not, inputs and labels or the loss are at fault."
    if not run.has("update_ratio", "tensor"):
        return f"{single} If it can, try the rate a factor of 10 higher and lower."
    matrices = [i for i, t in enumerate(run.tensors) if t.role == "matrix"]
    begin, end = np.searchsorted(run.stream.tensor_steps, [1, step + 1]).tolist()
    recent = Rows(run, max(begin, end - 50), end).table("update_ratio")[:, matrices]
    if not np.isfinite(recent).any():
        return f"{single} If it can, try the rate a factor of 10 higher and lower."
    ratio = float(np.nanmedian(recent))
    size = f"The updates are {ratio:.2g} of the weights they change; 0.001 is usual."
    if 0 < ratio < 1e-4:
        return f"{size} Try a rate {min(1e-3 / ratio, 1000):.2g} times as high, unless the gradients vanish."
    return f"{size} {single}" if ratio < 0.01 else f"{size} Try a rate {0.001 / ratio:.2g} times as high. {single}"
