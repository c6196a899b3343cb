"""SK421 moments-lost-on-resume.

What it reports:    A run was resumed with its weights, but without its optimizer's state.
Why it matters:     Adam starts anew from moments of zero, at the rate of the middle of a run: its first updates are as large as
                    the rate allows in every direction. Often the loss jumps and takes hundreds of steps to come back.
How it decides:     A new attempt begins in the same directory, with an optimizer that has counted no step, the same tensors
                    and the same settings as the attempt before; and every tensor's norm is the one it had after some step of
                    that attempt, at least ten steps in, and not the one it had at its beginning.
Known false alarms: A new phase from the trained weights, with fresh moments on purpose and the same settings: record it into a
                    directory of its own. Left alone are: an optimizer made anew inside one `with`, a run started again from
                    the same seed, an attempt of fewer than ten steps, other groups, other betas. Not seen: a resume into
                    another directory, weights that were saved in fewer bits or between two steps that were measured,
                    optimizers that count no steps.
What to try:        Save and load optimizer.state_dict() with the model's.
References:         PyTorch documentation, "Saving and loading a general checkpoint": the optimizer's state is saved too, as it
                    "contains buffers and parameters that are updated as the model trains".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.schedules import noted
from stabkit.analyzers.series import Indices
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog, Stream
from stabkit.runlog.rows import Rows

__all__ = ["RULE", "MomentsLostOnResume", "MomentsLostOnResumeThresholds"]

RULE = Rule(
    code="SK421",
    name="moments-lost-on-resume",
    severity=Severity.WARNING,
    requires=(("weight_norm", "tensor"), ("applied_steps", "step")),
)
SETTINGS = ("beta1", "beta2", "eps", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class MomentsLostOnResumeThresholds(Thresholds):
    """When weights are the same, and when they are others."""

    same: float = 1e-6
    """Relative difference of two norms of the same weights: they are summed in the same order, so this is generous."""
    same_at_end: float = 1e-5
    """The same for the norm after the last step, which is worked out from the update: rounding of float32."""
    moved: float = 1e-3
    """Relative change of a norm since the beginning that cannot be mistaken for none."""
    tensors: int = 2
    """Tensors that must have moved: the norm of a single one can be met by chance."""
    steps: int = 10
    """Steps that the lost moments had seen."""


class MomentsLostOnResume:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: MomentsLostOnResumeThresholds | None = None) -> None:
        self.thresholds = thresholds or MomentsLostOnResumeThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the first step of the attempt."""
        attempt = run.previous()
        before = attempt.streams[run.index] if attempt is not None and run.index < len(attempt.streams) else None
        if before is None or not len(before.tensor_steps):
            raise NoOccasion("there is no attempt before this one in the directory")
        attempts = noted(run, "attempt")
        first = int(run.steps[0])
        began = first in (1, *(event.get("first_step") for event in attempts[:1]))  # a resumed run may number its steps on
        counted = attempts[0].get("count") != 0 if attempts else first != 1
        if not began or counted or not len(run.stream.tensor_steps) or run.stream.tensor_steps[0] > first:
            raise NoOccasion("the optimizer had counted steps, or its first step is not in the log")
        if attempts and not any(event.get("event") == "open" for event in run.events):
            raise NoOccasion("the optimizer was made anew inside the run: nothing was resumed")
        if not _same_settings(run.stream, before):
            raise NotApplicable("the attempt before trained other tensors or had other settings: this is another phase")
        entry = Rows(run, 0, 1).table("weight_norm")[0]
        norms, steps, whole = _norms_of(before)
        known = np.isfinite(entry) & (entry > 0) & np.isfinite(norms[0])
        moved = known & (np.abs(norms[0] - entry) > self.thresholds.moved * entry)
        if np.count_nonzero(moved) < self.thresholds.tensors:
            return
        apart = np.max(np.abs(norms[:, known] / entry[known] - 1), axis=1)
        limit = np.where(steps == before.steps[-1], self.thresholds.same_at_end, self.thresholds.same)
        rows = np.flatnonzero((apart <= limit) & (steps >= self.thresholds.steps))
        if not len(rows):
            if not whole:
                raise NotApplicable("of the attempt before, not every step's weights are known")
            return
        row, place = int(rows[0]), int(np.flatnonzero(moved)[0])
        name, beta2 = run.tensors[place].name, float(np.nanmax(np.append(run.stream.group_values["beta2"][0], 0.0)))
        memory = round(1 / (1 - beta2)) if 0 < beta2 < 1 else 1
        yield found(
            RULE,
            message=f"step {first} starts from the weights of step {steps[row]} of the attempt before, but with new moments: "
            "the optimizer's state was not loaded",
            first_step=first,
            last_step=first,
            event_step=first,
            last_good_step=first - 1,
            state=State.ONGOING if len(run.steps) == 1 else State.RECOVERED,
            evidence=(
                Evidence(metric="weight_norm", observed=float(entry[place]), expected=float(norms[row, place]), step=first,
                         tensor=name, note=f"after step {steps[row]} of the attempt before"),
                Evidence(metric="applied_steps", observed=0.0, expected=float(steps[row]), note=f"before step {first}"),
            ),
            advice=f"Load it with the model: optimizer.load_state_dict(saved), as of step {steps[row]}."
            + (f" Without it, warm up again for about {2 * memory} steps." if memory > 1 else ""),
            remedy={"restore_optimizer": 1.0},
        )  # fmt: skip


def _same_settings(now: Stream, before: Stream) -> bool:
    same = now.optimizer == before.optimizer and [t.name for t in now.tensors] == [t.name for t in before.tensors]
    values = [(s.group_values.get(name, np.empty((1, 0)))[0]) for name in SETTINGS for s in (now, before)]
    return same and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(values[::2], values[1::2], strict=True))


def _norms_of(stream: Stream) -> tuple[Array, Indices, bool]:
    """What is known of a stream's weights: norms [k, tensors], each after which step [k], and whether that is all there is.

    A record holds the weights before its step. Those after the last step are worked out from its update.
    """
    columns, steps = stream.columns, stream.tensor_steps
    squares, after = columns["weight_sumsq"], np.maximum(steps - 1, 0)
    whole = bool(np.isin(stream.steps, steps).all())
    if "update_sumsq" in columns and steps[-1] == stream.steps[-1]:
        coarse = np.array([t.dtype in ("float16", "bfloat16") for t in stream.tensors], dtype=bool)
        end = squares[-1] + 2 * columns["weight_update_dot"][-1] + columns["update_sumsq"][-1]
        end = np.where(coarse, np.nan, np.maximum(end, 0))
        squares, after = np.concatenate([squares, end[None]]), np.append(after, steps[-1])
        whole = whole and bool(np.isfinite(end).all())
    return np.sqrt(squares), after, whole
