"""SK408 leftover-micro-batches.

What it reports:    Micro-batches at the end of an epoch that did not fill a step: added to the first step of the next epoch,
                    or thrown away.
Why it matters:     Added, they make one gradient larger than the others, in part from weights of the past. Thrown away, their
                    batches were computed for nothing, and with a loader that does not shuffle never count.
How it decides:     After 8 steps of the same number N of backward calls, N at least 2: one step of more than N and fewer than
                    2 N calls of no other kind of loss, followed by a step of N again; or one before which fewer than N calls
                    were thrown away, where none were in those 8. A last step of fewer than N calls is well made.
Known false alarms: Bad micro-batches thrown away on purpose; a backward call of an evaluation, such as an attack's. Epochs of
                    fewer than 9 steps are not judged.
What to try:        Step on the last batch of the epoch too, or use a loader of a multiple of N batches.
References:         Hugging Face Transformers, Trainer: the last window of an epoch is stepped, however many batches it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.habit import need_backward
from stabkit.analyzers.series import Flags
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "LeftoverMicroBatches", "LeftoverMicroBatchesThresholds"]

RULE = Rule(
    code="SK408",
    name="leftover-micro-batches",
    severity=Severity.INFO,
    requires=(("backward_count", "step"), ("dropped_backwards", "step"), ("loss_kinds", "step")),
    min_steps=9,
)


@dataclass(frozen=True, kw_only=True)
class LeftoverMicroBatchesThresholds(Thresholds):
    """What makes a number of micro-batches the usual one."""

    steps: int = 8
    """Steps in a row with that number before the one that has another: one number in 3 drawn at random would pass one time
    in 3^7 = 2,187."""


class LeftoverMicroBatches:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: LeftoverMicroBatchesThresholds | None = None) -> None:
        self.thresholds = thresholds or LeftoverMicroBatchesThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the first such step."""
        need_backward(run)
        count, dropped = run.series("backward_count").values, run.series("dropped_backwards").values
        usual = _usual(count, dropped, self.thresholds.steps)
        kinds = run.series("loss_kinds").values
        added = (count > usual) & (count < 2 * usual) & (dropped == 0)
        added &= kinds == np.append(np.nan, kinds[:-1])  # else another loss was added
        added &= np.append(count[1:] == usual[:-1], False)  # else the number has changed for good
        lost = (dropped > 0) & (dropped < usual)
        # What was added is known for a leftover one step later, when the usual number is back.
        told = [(i + 1, i) for i in np.flatnonzero(added).tolist()] + [(i, i) for i in np.flatnonzero(lost).tolist()]
        if told:
            yield _finding(run, *min(told), count, dropped, usual, added | lost)


def _usual(count: Array, dropped: Array, least: int) -> Array:
    """[n] the number of backward calls that all of the last `least` steps before each had; NaN where they had no one number."""
    usual = np.full(len(count), np.nan)
    if len(count) > least:
        clean = np.where(dropped == 0, count, np.nan)
        windows = sliding_window_view(clean[:-1], least)
        steady = (windows == windows[:, :1]).all(axis=1) & (windows[:, 0] >= 2)
        usual[least:] = np.where(steady, windows[:, 0], np.nan)
    return usual


def _finding(run: RunLog, told: int, at: int, count: Array, dropped: Array, usual: Array, flags: Flags) -> Finding:
    step, n = int(run.steps[at]), int(usual[at])
    if dropped[at] > 0:
        left = int(dropped[at])
        message = f"{left} micro-batch{'es' if left > 1 else ''} before step {step} did not fill a step of {n}: thrown away"
        evidence = Evidence(metric="dropped_backwards", observed=dropped[at], expected=0.0, step=step, note="as usual")
        cure = "Also step after the last batch of an epoch"
    else:
        left = int(count[at]) - n
        message = f"step {step} is of {int(count[at])} micro-batches instead of {n}: {left} {_were(left)} left over before it"
        evidence = Evidence(metric="backward_count", observed=count[at], expected=float(n), step=step, note="as usual")
        cure = "Also step and zero the gradients after the last batch of an epoch"
    last = int(np.flatnonzero(flags)[-1])
    return found(
        RULE,
        message=message,
        first_step=int(run.steps[told]),
        last_step=max(int(run.steps[told]), int(run.steps[last])),
        event_step=step,
        last_good_step=step - 1,
        state=State.ONGOING if last >= len(flags) - 2 else State.RECOVERED,
        evidence=(evidence,),
        advice=f"{cure}, dividing by the {left} that it has, or use a loader whose batches are a multiple of {n}.",
    )


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
