"""SK301 nonfinite-value.

What it reports:    The first NaN or infinity in the loss, a gradient or a weight, in which tensor, and what grew before it.
Why it matters:     Once a weight is not finite, every later step is void. The first place seen is where to look, not always the
                    cause: that is often a growth that began earlier.
How it decides:     Counts of elements that are not finite. In one step the loss comes before gradients, gradients before weights.
                    Backward runs from the last layer to the first, so where only some gradients are affected the one latest
                    in the model comes first. Steps that a GradScaler skipped are its ordinary work and do not count. The tensors
                    that grew most over the 50 steps before are listed as precursors.
Known false alarms: A loss that is NaN by design on empty batches, if it is not stepped on.
What to try:        Restart from a checkpoint at or before the last good step. With a finite loss and gradients before it, rerun that
                    step alone under torch.autograd.set_detect_anomaly(True) on the same batch.
References:         Micikevicius et al. 2017, arXiv 1710.03740; Llama 3 (arXiv 2407.21783) on silent hardware faults: rerun the step
                    before blaming the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, found
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "NonfiniteValue", "NonfiniteValueThresholds"]

RULE = Rule(code="SK301", name="nonfinite-value", severity=Severity.ERROR, requires=(("loss_reduction", "step"),))


@dataclass(frozen=True, kw_only=True)
class NonfiniteValueThresholds:
    """How far back, and from what growth on, something counts as a precursor."""

    look_back: int = 50
    """Steps before the event."""
    growth: float = 4.0
    """Growth over those steps worth telling, over that of the median matrix."""


@dataclass(frozen=True)
class _First:
    """Where something first was not finite."""

    step: int
    what: str
    tensors: tuple[str, ...]
    count: float


class NonfiniteValue:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: NonfiniteValueThresholds | None = None) -> None:
        self.thresholds = thresholds or NonfiniteValueThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: what follows the first is not news."""
        seen = [first for first in (_in_loss(run), _in_tensors(run, "grad"), _in_tensors(run, "weight")) if first]
        if not seen:
            return
        first = min(seen, key=lambda f: f.step)  # on a tie the earlier in the list: loss, gradient, weight
        precursors = self._precursors(run, first.step)
        where = f"in the {first.what}" + (f" of {first.tensors[0]}" if first.tensors else "")
        others = f" and {len(first.tensors) - 1} more" if len(first.tensors) > 1 else ""
        before = f"; before it {precursors[0].tensor or precursors[0].metric} grew {precursors[0].note}" if precursors else ""
        good = _last_good(run, first.step)
        yield found(
            RULE,
            message=f"first NaN or Inf {where}{others} at step {first.step}{before}",
            first_step=first.step,
            last_step=int(run.steps[-1]),
            event_step=first.step,
            last_good_step=good,
            state=_state(run),
            tensors=first.tensors[:5],
            evidence=(
                Evidence(metric=first.what if first.what == "loss" else f"{first.what}_nonfinite", observed=first.count,
                         expected=None if first.what == "loss" else 0.0, step=first.step,
                         tensor=first.tensors[0] if first.tensors else None),
                *precursors,
            ),
            advice=_advice(first, precursors, good),
        )  # fmt: skip

    def _precursors(self, run: RunLog, step: int) -> tuple[Evidence, ...]:
        """What grew most over the steps before, per kind of quantity."""
        limits = self.thresholds
        found_before = []
        # A bias or a zero-initialised matrix starts at nothing: relative to that every growth is large.
        judged = np.array([t.role in ("matrix", "embedding") for t in run.tensors])
        for metric in ("weight_absmax", "grad_norm_used", "update_ratio"):
            if not run.has(metric, "tensor"):
                continue
            table = run.table(metric)
            rows = np.flatnonzero((table.steps < step) & (table.steps >= max(1, step - limits.look_back)))
            if len(rows) < 4:
                continue
            edge = max(1, len(rows) // 4)
            with np.errstate(divide="ignore", invalid="ignore"):
                start, end = np.nanmedian(table.values[rows[:edge]], axis=0), np.nanmax(table.values[rows[-edge:]], axis=0)
                growth = np.where(judged & np.isfinite(end) & (start > 0), end / start, 0.0)
            worst = int(np.argmax(growth))
            # Early in training gradients of all matrices grow together; a precursor stands out of that too.
            if growth[worst] >= limits.growth * max(1.0, float(np.median(growth[judged])) if judged.any() else 1.0):
                found_before.append(
                    Evidence(metric=metric, observed=float(end[worst]), expected=float(start[worst]), step=int(table.steps[rows[-1]]),
                             tensor=table.tensors[worst], note=f"{growth[worst]:.2g}-fold in {len(rows)} steps")
                )  # fmt: skip
        return tuple(found_before)


def _in_loss(run: RunLog) -> _First | None:
    seen = run.series("loss_reduction").values > 0
    losses = run.series("loss").values if "loss" in run.stream.step_values else np.full(len(run.steps), np.nan)
    bad = np.flatnonzero(seen & ~np.isfinite(losses) & ~_skipped(run))
    return _First(int(run.steps[bad[0]]), "loss", (), float(losses[bad[0]])) if len(bad) else None


def _in_tensors(run: RunLog, what: str) -> _First | None:
    if not run.has(f"{what}_nonfinite", "tensor"):
        return None
    table = run.table(f"{what}_nonfinite")
    skipped = np.isin(table.steps, run.steps[_skipped(run)])
    with np.errstate(invalid="ignore"):
        bad = (table.values > 0) & ~skipped[:, None]
    rows = np.flatnonzero(bad.any(axis=1))
    if not len(rows):
        return None
    row = rows[0]
    order = np.flatnonzero(bad[row])
    if what == "grad" and not bad[row].all():
        order = order[::-1]  # backward reaches the latest layer first
    return _First(int(table.steps[row]), what, tuple(table.tensors[i] for i in order.tolist()), float(np.nansum(table.values[row])))


def _skipped(run: RunLog) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if "skipped" not in run.stream.step_values:
        return np.zeros(len(run.steps), dtype=bool)
    skipped: np.ndarray[tuple[int], np.dtype[np.bool_]] = run.series("skipped").values == 1
    return skipped


def _last_good(run: RunLog, step: int) -> int:
    """The last step after which every weight is known to have been finite, not later than the one before the event."""
    if not run.has("weight_nonfinite", "tensor"):
        return step - 1
    table = run.table("weight_nonfinite")
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero((table.values > 0).any(axis=1))
    return min(step - 1, int(table.steps[bad[0]]) - 1) if len(bad) else step - 1


def _state(run: RunLog) -> State:
    weights = run.table("weight_nonfinite").values[-1] if run.has("weight_nonfinite", "tensor") else np.zeros(1)
    loss = run.series("loss").values[-1] if run.has("loss") else np.nan
    return State.RECOVERED if not np.nansum(weights) and np.isfinite(loss) else State.ONGOING


def _advice(first: _First, precursors: tuple[Evidence, ...], good: int) -> str:
    restart = f"Restart from a checkpoint at or before step {good}."
    if precursors:
        return f"{restart} Look at {precursors[0].tensor} first: its {precursors[0].metric} grew before anything else broke."
    if first.what == "loss":
        return f"{restart} Nothing grew before: look at the batch of step {first.step} and at the loss itself (log of 0, 0/0)."
    return (
        f"{restart} Nothing grew before and the loss was finite: rerun step {first.step} under "
        "torch.autograd.set_detect_anomaly(True) on the same batch."
    )
