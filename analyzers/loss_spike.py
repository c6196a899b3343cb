"""SK201 loss-spike.

What it reports:    A loss far above its own recent level.
Why it matters:     The optimizer took a step it could not afford, or met data it did not expect. Repeated spikes often
                    come before divergence, and each costs the steps it takes to return.
How it decides:     Robust z-score of log(loss) (of the loss itself from its first value on that is not positive)
                    above 8; or above 6 where the gradient norm is up as well (its own z-score above 4), or where it is
                    the fifth such loss in a row. And at least 5 % above its recent level: the median of the latest third
                    of the last 100 finite values, the spread taken around their own trend. Losses above 6 stay out of
                    the baseline. What recurs is how the run is: the rise (in log) must be twice the third highest of
                    the earlier rises in the last 500 records, so of spikes that come again and again the first three
                    are told; or three records in a row stand out where at most one in 20 begins such a run. Two spikes
                    are one up to 30 records apart, or where the z-score was above 3 in most records between them.
                    Windows count records, one per step or not. The first 20 have no baseline and are not judged, nor are
                    20 after a gap in the log longer than the baseline reaches back, nor a loss after 100 zeros: there
                    is no noise to measure against. Of several ranks, each measured by its
                    own past, one is named where the others rose less than 15 % as much in log, or 1 % in the loss.
Known false alarms: A change of the data mix, an epoch boundary. Batches far harder than the others: up to three
                    times, less often than once in 170 records every time. Tails heavier than exponential.
What to try:        Look at the batches of the steps named. Clip the gradient norm; lower beta2 (0.95 is usual for
                    language models) or the peak rate.
References:         Robust z-score with window 100 on logs, limit 6 where loss and gradient agree and 8 for one of them
                    alone, as a practitioner's monitor: 6 healthy runs of 130M-1.2B parameters stayed below 4.5. OLMo 2
                    (arXiv 2501.00656) counts values 7 standard deviations out. There is no agreed definition of a spike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.level import LossLevel, loss_level
from stabkit.analyzers.ranks import OwnLoss, rank_that_rose
from stabkit.analyzers.series import lasts, previous
from stabkit.analyzers.usual import spikes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "LossSpike", "LossSpikeThresholds"]

RULE = Rule(code="SK201", name="loss-spike", severity=Severity.WARNING, requires=(("loss", "step"),), min_steps=21)


@dataclass(frozen=True, kw_only=True)
class LossSpikeThresholds(Thresholds):
    """When a loss stands out."""

    score: float = 6.0
    """Robust z-score against the recent level, where the gradient norm is up too."""
    alone: float = 8.0
    """The same where the loss is the only witness."""
    rise: float = 0.05
    """Least rise over the recent level, as a share of it."""
    gap: int = 30
    """Records between two spikes up to which they are one, unless the loss stayed up between them."""


class LossSpike:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: LossSpikeThresholds | None = None) -> None:
        self.thresholds = thresholds or LossSpikeThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per spike."""
        limits = self.thresholds
        loss = loss_level(run, limits.score, limits.alone)
        with np.errstate(invalid="ignore", over="ignore"):
            high = loss.values - loss.level > limits.rise * np.abs(loss.level)
            up = loss.score > limits.score / 2
        for first, last in spikes(loss.unusual & high, up, limits.gap):
            told = first + np.flatnonzero((loss.borne_out & high)[first : last + 1])
            if len(told):
                yield self._finding(loss, int(told[0]), last, rank_that_rose(run, int(loss.steps[told[0]])))

    def _finding(self, loss: LossLevel, first: int, last: int, alone: OwnLoss | None) -> Finding:
        during = loss.values[first : last + 1]
        peak = first + int(np.argmax(np.where(np.isfinite(during), during, -np.inf)))
        step, good, level = int(loss.steps[first]), previous(loss.steps, first), float(loss.level[first])
        begun, batch = (f"; it began on {alone.rank} alone", f" on {alone.rank}") if alone else ("", "")
        own = [Evidence(metric=f"loss of {alone.rank}", observed=alone.loss, expected=alone.level, step=step,
                        note="its own recent median")] if alone else []  # fmt: skip
        return found(
            RULE,
            message=f"loss rose from about {level:.4g} to {loss.values[peak]:.4g} at step {loss.steps[peak]}{begun}",
            first_step=step,
            last_step=int(loss.steps[last]),
            event_step=int(loss.steps[peak]),
            last_good_step=good,
            state=State.ONGOING if lasts(last, len(loss.steps)) else State.RECOVERED,
            evidence=(
                Evidence(metric="loss", observed=float(loss.values[first]), expected=level, step=step, note="recent median"),
                Evidence(metric="loss z-score", observed=float(loss.score[first]), expected=self._passed(loss, first),
                         step=step, note="on log(loss)" if loss.logarithmic[first] else "on the loss"),
                *own,
            ),
            advice=_look_at(good, step, batch)
            + " If such batches are to stay: clip the gradient norm, or lower beta2 or the rate.",
        )  # fmt: skip

    def _passed(self, loss: LossLevel, row: int) -> float:
        return self.thresholds.alone if loss.score[row] > self.thresholds.alone else self.thresholds.score


def _look_at(good: int, step: int, batch: str) -> str:
    if step - good > 1:
        return f"Look at the batches of steps {good + 1} to {step}{batch}: this log has one record for all of them."
    return f"Look at the batch of step {step}{batch}, and at step {good}, which made the weights it met."
