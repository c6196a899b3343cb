"""Names the batches of a finding's steps, where the user told them: `log(batch="17")` on what `stabkit.watch` yields."""

from __future__ import annotations

from dataclasses import replace

from stabkit.finding import Finding, Outcome
from stabkit.runlog import RunLog

__all__ = ["name_batches"]

_NAMED = 4
"""Batches of one step that are named in a message; a step may have as many as it has micro-batches."""


def name_batches(outcome: Outcome, run: RunLog) -> Outcome:
    """The outcome with the batches of each finding's first and worst step in it. Wiring is no matter of a batch."""
    known = run.stream.batches
    if not known or not outcome.findings or outcome.rule.startswith("SK4"):
        return outcome
    return replace(outcome, findings=tuple(_with_batches(finding, run) for finding in outcome.findings))


def _with_batches(finding: Finding, run: RunLog) -> Finding:
    steps = (finding.first_step, finding.event_step)
    batches = {step: run.stream.batches[step] for step in steps if step is not None and step in run.stream.batches}
    if not batches:
        return finding
    said = "; ".join(
        ("" if step == finding.first_step else f"at step {step} ") + _listed(found) for step, found in batches.items()
    )
    return replace(finding, batches=batches, message=f"{finding.message} ({said})")


def _listed(batches: tuple[str, ...]) -> str:
    more = f" and {len(batches) - _NAMED} more" if len(batches) > _NAMED else ""
    return f"batch{'es'[: 2 * (len(batches) > 1)]} {', '.join(batches[:_NAMED])}{more}"
