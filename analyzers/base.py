"""What a rule is, and what it may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from stabkit.finding import Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["Analyzer", "NoOccasion", "NotApplicable", "Rule", "Thresholds", "found", "in_plain_digits"]

_POWERS = re.compile(r"(?<![\w.])\d(?:\.\d+)?e\+0[1-5](?![\w.]*\w)")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is known of a rule before it has seen a run.

    Attributes:
        code: Such as "SK101"; never changes its meaning.
        name: The bad pattern, such as "missing-warmup".
        severity: The severity it usually finds.
        requires: The quantities it cannot do without, as (metric, scope).
        any_of: Quantities of which it needs one; none where it needs no such.
        min_steps: The number of recorded steps below which it says nothing.
        since: The version it appeared in.
    """

    code: str
    name: str
    severity: Severity
    requires: tuple[tuple[str, str], ...]
    any_of: tuple[tuple[str, str], ...] = ()
    min_steps: int = 1
    since: str = "0.1"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The limits of a rule; every one is a number above 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{type(self).__name__}: {field.name} must be above 0, not {value!r}")


class NotApplicable(Exception):
    """Raised by a rule that finds it cannot judge this run; the message is the reason."""


class NoOccasion(NotApplicable):
    """Raised by a rule where the run has nothing that it is about: no scaler, no scheduler, no resume."""


class Analyzer(Protocol):
    """One rule with its thresholds.

    `analyze` is causal: what a finding whose `first_step` is t says of its rule, its first step and its first tensor rests on
    records up to t, and no finding comes before `min_steps` records. So a run seen live gets the same findings at the same
    steps as the whole log does afterwards. What may still change as the log grows: `last_step`, `event_step`, `state` and the
    peak in the message, and the severity, which may only rise.
    """

    rule: Rule

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """The findings in a run that holds everything the rule requires.

        Raises:
            NotApplicable: the run cannot be judged, for a reason only the rule could see.
        """


def found(rule: Rule, **details: Any) -> Finding:
    """A finding of this rule, at the rule's own severity unless another is given; its texts as people write numbers."""
    texts: dict[str, Any] = {n: in_plain_digits(details[n]) for n in ("message", "advice") if n in details}
    seen = tuple(replace(item, note=in_plain_digits(item.note)) for item in details.get("evidence", ()))
    told: dict[str, Any] = {"severity": rule.severity, **details, **texts, "evidence": seen}
    return Finding(rule=rule.code, name=rule.name, **told)


def in_plain_digits(text: str) -> str:
    """The text with numbers such as 1.3e+02, as Python writes 130 with two digits, written out up to 100,000."""
    return _POWERS.sub(lambda power: f"{float(power[0]):.0f}", text)
