"""All figures of the score, as plain data, from the alarms of every run and its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.score.alarms import Alarm
from benchmarks.score.bootstrap import Resampled, wilson
from benchmarks.score.corpus import Case, Event
from benchmarks.score.curves import Curves
from benchmarks.score.match import HORIZONS, match, merged
from benchmarks.score.shifted import shifted

__all__ = ["DESCRIBES", "Seen", "by_class", "by_family", "by_rule", "confidences", "figures", "stabkit_figures"]

CONFIDENCE_HORIZON = 200
LEAST_RUNS = 5
DESCRIBES = frozenset({"SK201", "SK202", "SK203", "SK301"})
"""Rules that say what the loss, the gradient or a number does, and name no cause: right with an event of any kind."""


@dataclass(frozen=True)
class Seen:
    """A run, its alarms and its curves."""

    case: Case
    alarms: tuple[Alarm, ...]
    curves: Curves
    seconds: float = 0.0

    @property
    def length(self) -> int:
        """How many steps were judged."""
        return len(self.curves.steps)


Steps = Sequence[Sequence[int]]


def figures(
    seen: Sequence[Seen], steps: Steps, draws: Resampled, only: Callable[[Event], bool] | None = None
) -> dict[str, Any]:
    """Recall, precision, lead and false alarms of anything that raises alarms.

    Args:
        seen: The runs.
        steps: Of each run, the steps of its alarms, increasing.
        draws: The resampled runs.
        only: The events that recall and lead are about; all by default. What is false never depends on it.
    """
    healthy = np.array([one.case.healthy for one in seen], dtype=bool)
    lengths = np.array([one.length for one in seen])
    counts = np.array([len(own) for own in steps])
    groups = np.array([len(merged(own)) for own in steps])
    report: dict[str, Any] = {
        "false_per_1000_healthy": draws.ratio(counts * healthy, lengths * healthy, 1000).data(),
        "false_merged_per_1000_healthy": draws.ratio(groups * healthy, lengths * healthy, 1000).data(),
        "healthy_runs_with_alarm": draws.ratio((counts > 0) * healthy, healthy).data(),
    }
    for horizon in HORIZONS:
        found = [match(own, one.case.events, horizon) for own, one in zip(steps, seen, strict=True)]
        kept = [np.array([only is None or only(e) for e in one.case.events], dtype=bool) for one in seen]
        events = [int(k.sum()) for k in kept]
        leads = np.concatenate([m.lead[k] for m, k in zip(found, kept, strict=True)] or [np.zeros(0)])
        run_of = [i for i, k in enumerate(kept) for _ in range(int(k.sum()))]
        ahead, right = [int(m.foretells.sum()) for m in found], [int(m.right.sum()) for m in found]
        false = [int(m.false.sum()) for m in found]
        sight = [max(0, one.case.events[0].onset - horizon - int(one.curves.steps[0])) if one.case.events and one.length else 0
                 for one in seen]  # fmt: skip
        report[f"H{horizon}"] = {
            "detected": draws.ratio([(m.detected & k).sum() for m, k in zip(found, kept, strict=True)], events).data(),
            "predicted": draws.ratio([(m.predicted & k).sum() for m, k in zip(found, kept, strict=True)], events).data(),
            "late": draws.ratio([(m.late & k).sum() for m, k in zip(found, kept, strict=True)], events).data(),
            "precision": draws.ratio(right, np.add(right, false)).data(),
            "prediction_precision": draws.ratio(ahead, np.add(ahead, false)).data(),
            "false_per_1000_before": draws.ratio([int(m.before.sum()) for m in found], sight, 1000).data(),
            "lead": {name: draws.quantile(leads, run_of, q).data() for name, q in
                     (("lower", 0.25), ("median", 0.5), ("upper", 0.75))},
        }  # fmt: skip
    return report


def stabkit_figures(seen: Sequence[Seen], draws: Resampled, shifts: int = 1000) -> dict[str, Any]:
    """The figures of all rules together, who was named, and what chance would have caught."""
    steps = [[alarm.step for alarm in one.alarms] for one in seen]
    report = figures(seen, steps, draws)
    ends = [(int(one.curves.steps[0]), int(one.curves.steps[-1])) if one.length else (1, 1) for one in seen]
    for horizon in HORIZONS:
        chance = shifted(steps, [one.case.events for one in seen], ends, horizon, shifts)
        report[f"H{horizon}"] |= {"shifted": chance.data(), **_named(seen, draws, horizon)}
    return report


def _named(seen: Sequence[Seen], draws: Resampled, horizon: int, cls: str | None = None) -> dict[str, Any]:
    """Of the detected events: the rule of the finding that holds the first alarm, and the first tensor blamed.

    The rule also of all events that have one: a miss names nothing.
    """
    rule, tensor, named = np.zeros((len(seen), 2)), np.zeros((len(seen), 2)), np.zeros(len(seen))
    for i, one in enumerate(seen):
        named[i] = sum(bool(event.rules) for event in one.case.events if cls in (None, event.cls))
        found = match([alarm.step for alarm in one.alarms], one.case.events, horizon)
        for event, first in zip(one.case.events, found.first, strict=True):
            if first < 0 or (cls is not None and event.cls != cls):
                continue
            alarm = one.alarms[first]
            if event.rules:
                rule[i] += alarm.cause in event.rules, 1
            if event.tensors:
                rest = [a for a in one.alarms[first:] if a.step <= event.onset + 5]
                blamed = next((names[0] for names in (alarm.cause_tensors, *(a.tensors for a in rest)) if names), None)
                tensor[i] += blamed in event.tensors, 1
    return {"right_rule": draws.ratio(*rule.T).data(), "right_rule_of_all": draws.ratio(rule[:, 0], named).data(),
            "right_tensor": draws.ratio(*tensor.T).data()}  # fmt: skip


def by_class(seen: Sequence[Seen], draws: Resampled) -> dict[str, Any]:
    """The figures of all rules together on the events of each class."""
    steps = [[alarm.step for alarm in one.alarms] for one in seen]
    report = {}
    for cls in sorted({event.cls for one in seen for event in one.case.events}):
        report[cls] = figures(seen, steps, draws, lambda event, cls=cls: event.cls == cls)  # type: ignore[misc]
        for horizon in HORIZONS:
            report[cls][f"H{horizon}"] |= _named(seen, draws, horizon, cls)
    return report


def by_family(seen: Sequence[Seen]) -> dict[str, Any]:
    """The figures of all rules together on the runs of each family."""
    report = {}
    for family in sorted({one.case.family for one in seen}):
        own = [one for one in seen if one.case.family == family]
        draws = Resampled(len(own))
        report[family] = figures(own, [[alarm.step for alarm in one.alarms] for one in own], draws) | {"runs": len(own)}
        for horizon in HORIZONS:
            report[family][f"H{horizon}"] |= _named(own, draws, horizon)
    return report


def by_rule(seen: Sequence[Seen], draws: Resampled) -> dict[str, Any]:
    """The figures of each rule that spoke or should have: recall on the events that it may name."""
    rules = {alarm.rule for one in seen for alarm in one.alarms}
    rules |= {rule for one in seen for event in one.case.events for rule in event.rules}
    report = {}
    for rule in sorted(rules):
        steps = [[alarm.step for alarm in one.alarms if alarm.rule == rule] for one in seen]
        report[rule] = figures(seen, steps, draws, lambda event, rule=rule: rule in event.rules)  # type: ignore[misc]
        report[rule] |= {"alarms": sum(map(len, steps)), "false": _false(seen, steps)}
    return report


def _false(seen: Sequence[Seen], steps: Steps) -> dict[str, Any]:
    """Where alarms were false: how many in healthy runs, by family; how many before the event in sick ones, H = 50."""
    healthy = [(one.case, len(own)) for one, own in zip(seen, steps, strict=True) if one.case.healthy]
    families: dict[str, int] = {}
    for case, count in healthy:
        families[case.family] = families.get(case.family, 0) + count
    sick = [(own, one.case.events) for one, own in zip(seen, steps, strict=True) if not one.case.healthy]
    return {
        "alarms": sum(count for _, count in healthy), "runs": sum(count > 0 for _, count in healthy), "families": families,
        "hard_negatives": sum(count for case, count in healthy if case.hard_negative),
        "before": sum(int(match(own, events, 50).before.sum()) for own, events in sick),
    }  # fmt: skip


def confidences(seen: Sequence[Seen]) -> dict[str, dict[str, float]]:
    """Measured precision of each rule: the share of its alarms that are right.

    Right is an alarm with an event that follows within 200 steps, begins or goes on, and that the rule may name. A rule that
    only describes (`DESCRIBES`) is right with any event. In healthy runs every alarm is wrong.

    The interval takes each run as one observation, for the findings of one run are not independent. Rules that spoke in fewer
    than 5 runs are left out.
    """
    report = {}
    for rule in sorted({alarm.rule for one in seen for alarm in one.alarms}):
        right, total, runs = 0, 0, 0
        for one in seen:
            steps = [alarm.step for alarm in one.alarms if alarm.rule == rule]
            events = [event for event in one.case.events if rule in event.rules | DESCRIBES]
            found = match(steps, events, CONFIDENCE_HORIZON)
            right, total, runs = right + int((found.right | found.after).sum()), total + len(steps), runs + bool(steps)
        if runs >= LEAST_RUNS:
            share = right / total
            low, high = wilson(share * runs, runs)
            report[rule] = {"precision": round(share, 4), "low": round(low, 4), "high": round(high, 4), "findings": total,
                            "runs": runs}  # fmt: skip
    return report
