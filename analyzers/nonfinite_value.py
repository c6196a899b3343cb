"""SK301 nonfinite-value.

What it reports:    The first NaN or infinity in the loss, a gradient or a weight, in which tensor, and what grew before
                    it.
Why it matters:     Once a weight is not finite, every later step is void. The first place seen is where to look, not
                    always the cause: that is often a growth that began earlier.
How it decides:     Counts of elements that are not finite. In one step the loss comes before gradients, gradients
                    before weights. Backward runs from the last layer to the first, so where only some gradients are
                    affected the one latest in the model comes first. Clipping by a norm that is not finite spreads it
                    to every gradient: then no tensor is named. Steps that a GradScaler skipped are its ordinary work
                    and do not count. In a log without counts, of another tool, the global gradient norm stands for
                    them; told where it says that the step was not skipped, or the next record shows that the loss
                    scale did not fall; without either it is a warning, and an error once a loss is not finite. A
                    matrix that grew at least 4-fold over the 50 steps before, and 4 times as much as the median
                    matrix, is told as a precursor. Where one of several ranks alone had such a loss, it is named.
Known false alarms: A loss that is NaN by design on empty batches, if it is not stepped on.
What to try:        Restart from a checkpoint at or before the last good step. With a finite loss and gradients before it,
                    rerun that step alone under torch.autograd.set_detect_anomaly(True) on the same batch.
References:         Micikevicius et al. 2017, arXiv 1710.03740; Llama 3 (arXiv 2407.21783) on silent hardware faults:
                    rerun the step before blaming the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.broken import BrokenGradients, BrokenWeights
from stabkit.analyzers.level import broken_losses, skipped_steps
from stabkit.analyzers.norms import first_in_norm
from stabkit.analyzers.ranks import broken_rank
from stabkit.analyzers.series import known_max, known_median, previous, spacing
from stabkit.analyzers.sweep import swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows, rows_of_steps

__all__ = ["RULE", "NonfiniteValue", "NonfiniteValueThresholds"]

RULE = Rule(code="SK301", name="nonfinite-value", severity=Severity.ERROR, requires=(("loss_reduction", "step"),))


@dataclass(frozen=True, kw_only=True)
class NonfiniteValueThresholds(Thresholds):
    """How far back, and from what growth on, something counts as a precursor."""

    look_back: int = 50
    """Records before the event."""
    growth: float = 4.0
    """Growth over those steps worth telling, over that of the median matrix."""


EVIDENCE = {"loss": "loss", "norm": "grad_norm", "grad": "grad_nonfinite", "weight": "weight_nonfinite"}


@dataclass(frozen=True)
class _First:
    """Where something first was not finite.

    Attributes:
        step: At which step.
        what: "loss", "grad", "norm" or "weight".
        tensors: Which, the first to be reached first; empty where that cannot be told.
        observed: The loss, or how many elements were not finite.
        spread: Whether clipping spread it to every gradient.
        told: At which step it was known; the same one where None.
        certain: Whether the optimizer is known to have used it.
    """

    step: int
    what: str
    tensors: tuple[str, ...]
    observed: float
    spread: bool = False
    told: int | None = None
    certain: bool = True

    @property
    def when(self) -> tuple[int, int]:
        """Until when it was known, and where it lies."""
        return (self.step if self.told is None else self.told, self.step)


class NonfiniteValue:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: NonfiniteValueThresholds | None = None) -> None:
        self.thresholds = thresholds or NonfiniteValueThresholds()

    def sweeps(self) -> tuple[type[BrokenGradients], type[BrokenWeights]]:
        """What it reads of the tensors."""
        return (BrokenGradients, BrokenWeights)

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: what follows the first is not news."""
        seen = [first for first in (_in_loss(run), _in_gradients(run), _in_tensors(run, "weight")) if first]
        if not seen:
            return
        first = min(seen, key=lambda f: f.when)  # on a tie the earlier in the list: loss, gradient, weight
        precursors = self._precursors(run, first.step)
        what = {"loss": "loss", "grad": "gradient", "norm": "gradient norm", "weight": "weights"}[first.what]
        where = f"in the {what}" + (f" of {first.tensors[0]}" if first.tensors else "")
        others = f" and {len(first.tensors) - 1} more" if len(first.tensors) > 1 else " of every tensor" if first.spread else ""
        before = f"; before it {precursors[0].tensor or precursors[0].metric} grew {precursors[0].note}" if precursors else ""
        good = _last_good(run, first.step)
        remedy = {"lr_factor": 0.5} if precursors else {"skip_batches": 1.0}
        alone = broken_rank(run, first.step) if first.what == "loss" else None
        own = [Evidence(metric=f"loss of {alone.rank}", observed=alone.loss, step=first.step,
                        note="those of the other ranks were finite")] if alone else []  # fmt: skip
        others += f" of {alone.rank} alone" if alone else ""
        yield found(
            RULE,
            severity=Severity.ERROR if first.certain or _broke(run, first.step) else Severity.WARNING,
            message=f"first NaN or Inf {where}{others} at step {first.step}{before}",
            first_step=first.when[0],
            last_step=int(run.steps[-1]) if precursors else first.when[0],  # what follows one bad batch is not of its making
            event_step=first.step,
            last_good_step=good,
            state=_state(run),
            tensors=first.tensors[:5],
            evidence=(
                Evidence(metric=EVIDENCE[first.what], observed=first.observed,
                         expected=0.0 if first.what in ("grad", "weight") else None, step=first.step,
                         tensor=first.tensors[0] if first.tensors else None),
                *own,
                *precursors,
            ),
            remedy=remedy,
            advice=_advice(first, precursors, good, alone.rank if alone else ""),
        )  # fmt: skip

    def _precursors(self, run: RunLog, step: int) -> tuple[Evidence, ...]:
        """What grew most over the steps before, per kind of quantity."""
        limits = self.thresholds
        found_before = []
        every = spacing(run.steps[run.steps < step])
        # A bias or a zero-initialised matrix starts at nothing: relative to that every growth is large.
        judged = np.array([t.role in ("matrix", "embedding") for t in run.tensors], dtype=bool)
        for metric in ("weight_absmax", "grad_norm_used", "update_ratio"):
            if not run.has(metric, "tensor"):
                continue
            near = rows_of_steps(run, max(1, step - limits.look_back * every), step - 1, (metric,))
            steps, values = near.steps, near.table(metric)
            if len(steps) < 4 or not judged.any():
                continue
            edge = max(1, len(steps) // 4)
            start, end = known_median(values[:edge]), known_max(values[-edge:])
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                growth = np.where(judged & np.isfinite(end) & (start > 0), end / start, 0.0)
            worst = int(np.argmax(growth))
            # Early in training gradients of all matrices grow together; a precursor stands out of that too.
            if growth[worst] >= limits.growth * max(1.0, float(np.median(growth[judged]))):
                found_before.append(
                    Evidence(metric=metric, observed=float(end[worst]), expected=float(start[worst]),
                             step=int(steps[-1]), tensor=run.tensors[worst].name,
                             note=f"{growth[worst]:.2g}-fold in {steps[-1] - steps[0] + 1} steps")
                )  # fmt: skip
        return tuple(found_before)


def _in_loss(run: RunLog) -> _First | None:
    bad = np.flatnonzero(broken_losses(run))
    return _First(int(run.steps[bad[0]]), "loss", (), float(run.stream.step_values["loss"][bad[0]])) if len(bad) else None


def _in_gradients(run: RunLog) -> _First | None:
    if run.has("grad_nonfinite", "tensor"):
        return _in_tensors(run, "grad")
    seen = first_in_norm(run)
    return _First(seen.step, "norm", (), seen.observed, told=seen.told, certain=seen.certain) if seen else None


def _in_tensors(run: RunLog, what: str) -> _First | None:
    if not run.has(f"{what}_nonfinite", "tensor"):
        return None
    measured = run.stream.tensor_steps
    broken = swept(run, BrokenGradients if what == "grad" else BrokenWeights)
    rows = np.flatnonzero(broken.rows & ~np.isin(measured, run.steps[skipped_steps(run)]))
    if not len(rows):
        return None
    row = int(rows[0])
    counts = Rows(run, row, row + 1).table(f"{what}_nonfinite")[0]
    order = np.flatnonzero(counts > 0)
    if what == "grad":
        order = order[::-1]  # backward reaches the latest layer first
    count, step = float(np.nansum(counts)), int(measured[row])
    if what == "grad" and (counts > 0).all() and len(order) > 1 and _clipped_by_nan(run, step):
        return _First(step, what, (), count, spread=True)
    return _First(step, what, tuple(run.tensors[i].name for i in order.tolist()), count)


def _clipped_by_nan(run: RunLog, step: int) -> bool:
    """Whether this step's gradients were clipped, by a norm that was not finite: every one of them is NaN after that."""
    limits = run.stream.step_values.get("clip_max_norm")
    used = run.stream.step_values.get("grad_norm_used")
    row = int(np.searchsorted(run.steps, step))
    if limits is None or used is None or row == len(run.steps) or run.steps[row] != step:
        return False
    return bool(np.isfinite(limits[row]) and not np.isfinite(used[row]))


def _last_good(run: RunLog, step: int) -> int | None:
    """The last step before the event after which every weight is known to have been finite; None where there is none."""
    if not run.has("weight_nonfinite", "tensor"):
        return previous(run.steps, int(np.searchsorted(run.steps, step)))
    before = run.stream.tensor_steps[run.stream.tensor_steps < step]
    bad = np.flatnonzero(swept(run, BrokenWeights).rows[: len(before)])
    known = before[: bad[0]] if len(bad) else before
    if len(known):
        return int(known[-1])
    return step - 1 if step > 0 and not len(bad) else None


def _broke(run: RunLog, step: int) -> bool:
    """Whether a loss was not finite after a step."""
    return bool((broken_losses(run) & (run.steps > step)).any())


def _state(run: RunLog) -> State:
    end = len(run.stream.tensor_steps)
    weights = Rows(run, end - 1, end).table("weight_nonfinite") if run.has("weight_nonfinite", "tensor") else np.zeros(1)
    loss = run.series("loss").values[-1] if run.has("loss") else np.nan
    return State.RECOVERED if not np.nansum(weights) and np.isfinite(loss) else State.ONGOING


def _advice(first: _First, precursors: tuple[Evidence, ...], good: int | None, rank: str) -> str:
    restart = "Start again" if good is None else f"Restart from a checkpoint at or before step {good}"
    if first.what == "norm":
        sure = "" if first.certain else "If no scaler skipped that step: "
        return f"{sure}{restart}, without what step {first.step} saw, and look at its batch; clipping cannot mend such a norm."
    if precursors:
        before = f"{precursors[0].tensor} first: its {precursors[0].metric} grew before anything else broke."
        return f"{restart} with every rate times 0.5. Look at {before}"
    restart = f"{restart}, without the batch of step {first.step}."
    if first.what == "loss":
        batch = f"batch of step {first.step}" + (f" on {rank}" if rank else "")
        return f"{restart} Nothing grew before: look at the {batch} and at the loss itself (log of 0, 0/0)."
    spread = "; clipping by a NaN norm hides in which tensor it began" if first.spread else ""
    return (
        f"{restart} Nothing grew before and the loss was finite{spread}: rerun step {first.step} under "
        "torch.autograd.set_detect_anomaly(True) on the same batch."
    )
