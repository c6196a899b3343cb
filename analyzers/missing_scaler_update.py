"""SK403 missing-scaler-update.

What it reports:    A loss scale that is never adapted, because `scaler.update()` is not called between steps.
Why it matters:     The scale stays where it began: after an overflow every later step overflows too and is skipped, and a
                    scale that has become too small loses gradients to zero. A scaler that lives on refuses the second step
                    with a RuntimeError; one that is made anew at every step hides the mistake.
How it decides:     The scaler refused a step, or `unscale_`, of gradients from a new backward because it had not been updated
                    since the last step; or 3 steps in a row went through scalers of which none was updated in between.
                    An update shared by several optimizers, or one with a scale of the user's own, counts.
Known false alarms: A scaler class of one's own whose `update` does not call torch's.
What to try:        `scaler.update()` once per iteration, after the last `scaler.step`; make the scaler once, before the loop.
References:         PyTorch documentation, torch.amp.GradScaler.update and "Working with multiple models, losses, and
                    optimizers".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.habit import habit
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "MissingScalerUpdate", "MissingScalerUpdateThresholds"]

RULE = Rule(
    code="SK403",
    name="missing-scaler-update",
    severity=Severity.WARNING,
    requires=(("loss_scale", "step"), ("scaler_updates", "step"), ("step_outside_scaler", "step")),
)

_ADVICE = "Call scaler.update() once per iteration, after the last scaler.step()"


@dataclass(frozen=True, kw_only=True)
class MissingScalerUpdateThresholds(Thresholds):
    """When an update is missing."""

    steps: int = 3
    """Steps in a row without one: an exchange of the scaler, as between two phases, makes one."""


class MissingScalerUpdate:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: MissingScalerUpdateThresholds | None = None) -> None:
        self.thresholds = thresholds or MissingScalerUpdateThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: the scaler's refusal, or the silence."""
        scale = run.series("loss_scale").values
        inside = ~np.isnan(scale) & (run.series("step_outside_scaler").values == 0)
        inside[:1] = False  # of what came before the first step nothing is known
        silent = habit(run, inside & (run.series("scaler_updates").values == 0), self.thresholds.steps)
        refused = next((e["step"] for e in run.events if e["event"] == "refused" and e.get("optimizer") == run.index), None)
        if refused is not None and (silent is None or refused < silent.told):
            yield found(
                RULE,
                message=f"the scaler refused the step after step {refused}: it was not updated since",
                first_step=refused,
                last_step=refused,
                last_good_step=refused,
                state=State.ONGOING if refused == run.steps[-1] else State.RECOVERED,
                evidence=(Evidence(metric="scaler_updates", observed=0, expected=1, step=refused, note="after this step"),),
                advice=f"{_ADVICE}.",
            )
        elif silent is not None:
            at = int(np.flatnonzero(run.steps == silent.told)[0])
            yield found(
                RULE,
                message=f"no scaler was updated between step {run.steps[at - self.thresholds.steps]} and step {silent.told}: "
                f"the loss scale stays at {scale[at]:.6g}",
                evidence=(
                    Evidence(metric="scaler_updates", observed=0, expected=1, step=silent.told, note="since the step before"),
                    Evidence(metric="loss_scale", observed=scale[at], step=silent.told),
                ),
                advice=f"{_ADVICE}, and make the scaler once, before the loop: only so can the scale leave {scale[at]:.6g}.",
                **silent.span(),
            )
