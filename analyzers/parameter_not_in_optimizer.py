"""SK416 parameter-not-in-optimizer.

What it reports:    Parameters of the model that get gradients but are in no optimizer.
Why it matters:     They keep the values they were made with. A head that was replaced, or a layer that was added, after the
                    optimizer was made, looks trained in every printout and is not.
How it decides:     After 20 steps (or at the end of a shorter run): the parameter asks for a gradient, has one when the
                    optimizer steps, and none of the optimizers that have stepped, watched or not, holds it.
Known false alarms: Parameters that are updated by hand. A backbone that is meant to be frozen, but is frozen only by leaving
                    it out: its gradients are computed for nothing. An optimizer that first steps after step 20. Not
                    judged: optimizers that hold tensors outside the model, which may be copies in 32 bits.
What to try:        Make the optimizer after the last change to the model, or add a group; freeze what is meant to be frozen.
References:         PyTorch documentation, torch.optim, "Constructing it"; Optimizer.add_param_group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, found
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "ParameterNotInOptimizer"]

RULE = Rule(
    code="SK416", name="parameter-not-in-optimizer", severity=Severity.WARNING, requires=(("kept_gradients", "step"),)
)
LOOKED = 20
"""The recorder looks for so many steps."""
OUTSIDE = re.compile(r"optimizer\d+\.group\d+\.\d+$")
"""The names of tensors that are in an optimizer but not in the model."""


class ParameterNotInOptimizer:
    """See the module's docstring."""

    rule = RULE

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, with the first optimizer of the run."""
        if run.index:
            raise NoOccasion("told with the first optimizer")
        told = [event for event in run.events if event.get("event") == "orphans" and event.get("parameters")]
        if not told:
            if len(run.steps) < LOOKED and not any(event.get("event") == "close" for event in run.events):
                raise NotApplicable(f"{len(run.steps)} steps; told after {LOOKED}, or at the end of the run")
            return
        if any(OUTSIDE.match(tensor.name) for stream in run.streams for tensor in stream.tensors):
            raise NotApplicable("an optimizer holds tensors outside the model, which may be copies of its parameters")
        names, count, step = tuple(map(str, told[0]["parameters"])), int(told[0]["count"]), int(told[0]["step"])
        others = f" and {count - 1} other parameter{'s' if count > 2 else ''}" if count > 1 else ""
        yield found(
            RULE,
            message=f"up to step {step}, {names[0]}{others} got gradients but {'are' if others else 'is'} in no optimizer",
            first_step=step,
            last_step=int(run.steps[-1]),
            event_step=int(run.steps[0]),
            last_good_step=int(run.steps[0]) - 1,
            tensors=names,
            evidence=(Evidence(metric="orphans", observed=float(count), expected=0.0, step=step, note="parameters"),),
            advice=f"Make the optimizer after the model is complete, or call optimizer.add_param_group for the {count} that "
            "are missing. If they are meant to stay as they are, call requires_grad_(False) on them.",
        )
