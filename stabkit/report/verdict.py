"""What a diagnosis comes to, in the counts and groups that every medium shows."""

from __future__ import annotations

from collections.abc import Sequence

from stabkit.finding import Finding, Outcome, Severity, State, Status
from stabkit.report.words import count, listed, span

__all__ = ["amounts", "batches", "by_reason", "looked", "no_occasion", "restart", "when"]


def amounts(findings: Sequence[Finding]) -> str:
    """Such as "2 errors, 1 warning"."""
    totals = [(severity, sum(f.severity == severity for f in findings)) for severity in sorted(Severity, reverse=True)]
    return ", ".join(f"{n:,} info" if s == Severity.INFO else count(n, str(s)) for s, n in totals if n)


def looked(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """How many rules looked, of how many that are about this run. With several optimizers, a rule must have looked at each."""
    asked = [outcome for outcome in outcomes if outcome.occasion]
    blind = {outcome.rule for outcome in asked if outcome.status in (Status.NOT_APPLICABLE, Status.FAILED)}
    rules = {outcome.rule for outcome in asked}
    return len(rules - blind), len(rules)


def by_reason(outcomes: Sequence[Outcome], status: Status) -> dict[str, list[Outcome]]:
    """The rules that are about this run and have a status, each once, by the reason they gave."""
    found: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        if outcome.status is status and outcome.occasion:
            found.setdefault(outcome.reason, {}).setdefault(outcome.rule, outcome)
    return {reason: list(rules.values()) for reason, rules in found.items()}


def no_occasion(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The rules that are about something this run has not, each once: no gap in what was looked at."""
    return list({outcome.rule: outcome for outcome in outcomes if not outcome.occasion}.values())


def when(finding: Finding) -> str:
    """Such as "steps 5–37, worst at 12, recovered"; what a rule tells once it has lasted began before its first step."""
    event = finding.event_step
    peak = "" if event in (None, finding.first_step) else f", worst at {event}"
    peak = f", begun at {event}" if event is not None and event < finding.first_step else peak
    state = "ongoing at the end" if finding.state is State.ONGOING else "recovered"
    return f"{span(finding.first_step, finding.last_step)}{peak}, {state}"


def batches(finding: Finding) -> str:
    """What the user called the batches of its steps; "" where nothing was told."""
    return "; ".join(f"step {step}: {listed(list(names), 6)}" for step, names in finding.batches.items())


def restart(last_good_step: int) -> str:
    """Where to go back to."""
    if last_good_step <= 0:
        return "from the beginning: no step before it was good"
    return f"from a checkpoint at or before step {last_good_step}"
