"""The findings of a run as alarms: each counts once, at its first step, inside another finding or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.score.corpus import Case
from stabkit.finding import Diagnosis, Finding, Severity

__all__ = ["Alarm", "alarms_of", "facts_of", "judged"]

RISES = frozenset({"SK201", "SK202", "SK203"})
"""Rules that say that a loss or a gradient rose."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One finding as the score sees it.

    Attributes:
        step: Its `first_step`.
        rule: Its rule.
        severity: How bad it is.
        tensors: What it blames, the culprit first.
        depth: 0 for a finding of its own, 1 for a consequence of one, and so on.
        cause: The rule of the finding it stands in; its own at depth 0.
        cause_tensors: What that finding blames.
        remedy: The remedy of that finding.
        facts: What a rerun wants to know of that finding.
    """

    step: int
    rule: str
    severity: Severity = Severity.WARNING
    tensors: tuple[str, ...] = ()
    depth: int = 0
    cause: str = ""
    cause_tensors: tuple[str, ...] = ()
    remedy: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)


def alarms_of(diagnosis: Diagnosis, least: Severity = Severity.WARNING) -> tuple[Alarm, ...]:
    """The alarms of a run by step; at one step a cause comes before its consequences.

    Args:
        diagnosis: From `stabkit.analyze`.
        least: Information is no alarm; ask for `Severity.INFO` to count it.
    """
    found = [alarm for finding in diagnosis.findings for alarm in _unfold(finding, finding, 0)]
    counted = [alarm for alarm in found if alarm.severity >= least]
    return tuple(sorted(counted, key=lambda alarm: (alarm.step, alarm.depth, -alarm.severity, alarm.rule)))


def judged(alarms: Sequence[Alarm], case: Case) -> tuple[Alarm, ...]:
    """The alarms that can be right or false: not those that say that the loss rose where the data made it rise, nor those
    that state a mistake which is there and did no harm."""
    return tuple(
        alarm for alarm in alarms
        if not (alarm.rule in RISES and case.of_the_data(alarm.step)) and not case.stated(alarm.rule, alarm.step)
    )  # fmt: skip


def facts_of(finding: Finding) -> dict[str, object]:
    """The steps and tensors of a finding, for what is to be trained again."""
    names = ("rule", "first_step", "last_step", "event_step", "last_good_step", "tensors")
    return {name: getattr(finding, name) for name in names}


def _unfold(finding: Finding, top: Finding, depth: int) -> list[Alarm]:
    own = Alarm(
        step=finding.first_step, rule=finding.rule, severity=finding.severity, tensors=finding.tensors, depth=depth,
        cause=top.rule, cause_tensors=top.tensors, remedy=dict(top.remedy), facts=facts_of(top),
    )  # fmt: skip
    return [own, *(alarm for inner in finding.consequences for alarm in _unfold(inner, top, depth + 1))]
