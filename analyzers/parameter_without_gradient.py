"""SK417 parameter-without-gradient.

What it reports:    Parameters in the optimizer that ask for a gradient and never got one.
Why it matters:     They are not trained, and the optimizer passes over them without a word: a module that `forward` no longer
                    calls, a `detach()` or `torch.no_grad()` in the wrong place, an output that the loss leaves out.
How it decides:     In none of the first 20 steps (or of a shorter run that is over) did they have a gradient, while others
                    of the same optimizer did.
Known false alarms: Experts of a mixture that no token has chosen yet; a head for a task that comes later; parts that are used
                    only now and then. A gradient of zeros is a gradient.
What to try:        Follow the module's output to the loss; remove what is not used, or freeze it.
References:         PyTorch documentation, DistributedDataParallel: find_unused_parameters is about the same parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from stabkit.analyzers.base import NotApplicable, Rule, found
from stabkit.analyzers.schedules import noted
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "ParameterWithoutGradient"]

RULE = Rule(code="SK417", name="parameter-without-gradient", severity=Severity.INFO, requires=(("kept_gradients", "step"),))
LOOKED = 20
"""The recorder looks for so many steps."""


class ParameterWithoutGradient:
    """See the module's docstring."""

    rule = RULE

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        told = [event for event in noted(run, "unreached") if event.get("parameters")]
        if not told:
            if len(run.steps) < LOOKED and not any(event.get("event") == "close" for event in run.events):
                raise NotApplicable(f"{len(run.steps)} steps; told after {LOOKED}, or at the end of the run")
            return
        names, count, step = tuple(map(str, told[0]["parameters"])), int(told[0]["count"]), int(told[0]["step"])
        others = f" and {count - 1} other parameter{'s' if count > 2 else ''}" if count > 1 else ""
        yield found(
            RULE,
            message=f"up to step {step}, {names[0]}{others} got no gradient",
            first_step=step,
            last_step=step,
            tensors=names,
            evidence=(Evidence(metric="unreached", observed=float(count), expected=0.0, step=step, note="parameters"),),
            advice=f"See whether forward uses the {count} and whether the loss depends on them: a detach(), a no_grad() or a "
            "module that is no longer called cuts them off. If they are not needed, leave them out of the optimizer.",
        )
