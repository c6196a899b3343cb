"""The rules, and the driver that puts a run before each of them. numpy and scipy only: works where there is no torch."""

from __future__ import annotations

from collections.abc import Iterable

from stabkit.analyzers.base import Analyzer, NotApplicable, Rule
from stabkit.analyzers.oversized_update import OversizedUpdate
from stabkit.finding import Diagnosis, Outcome, Status
from stabkit.metric import METRICS
from stabkit.runlog import RunLog

__all__ = ["ANALYZERS", "Analyzer", "NotApplicable", "Rule", "analyze", "judge"]

ANALYZERS: tuple[Analyzer, ...] = (
    OversizedUpdate(),
)  # fmt: skip
"""Every rule of the catalogue, by code."""


def analyze(run: RunLog, analyzers: Iterable[Analyzer] = ANALYZERS) -> Diagnosis:
    """Put a run before each rule.

    Args:
        run: From `stabkit.load`.
        analyzers: The rules; all by default.

    Returns:
        One outcome per rule and, where the run has several optimizers, per optimizer. Never raises for what the log lacks or
        for a rule that breaks: the outcome says so.
    """
    chosen = tuple(analyzers)
    views = [run.optimizer(index) for index in range(len(run.streams))]
    outcomes = [judge(analyzer, view) for analyzer in chosen for view in views]
    steps = max((len(view.steps) for view in views), default=0)
    return Diagnosis(path=run.path, source=run.source, steps=steps, outcomes=tuple(outcomes), notes=run.notes)


def judge(analyzer: Analyzer, run: RunLog) -> Outcome:
    """One rule on one run."""
    rule = analyzer.rule

    def outcome(status: Status, reason: str = "", findings: tuple = ()) -> Outcome:  # type: ignore[type-arg]
        return Outcome(rule=rule.code, name=rule.name, status=status, reason=reason, findings=findings)

    missing = [_missing(metric, scope) for metric, scope in rule.requires if not run.has(metric, scope)]
    if missing:
        return outcome(Status.NOT_APPLICABLE, f"the log has no {'; no '.join(missing)}")
    if len(run.steps) < rule.min_steps:
        return outcome(Status.NOT_APPLICABLE, f"{len(run.steps)} steps; needs {rule.min_steps}")
    try:
        findings = tuple(analyzer.analyze(run))
    except NotApplicable as reason:
        return outcome(Status.NOT_APPLICABLE, str(reason))
    except Exception as error:  # one broken rule must not silence the others
        return outcome(Status.FAILED, f"{type(error).__name__}: {error}")
    return outcome(Status.FOUND if findings else Status.CLEAR, findings=findings)


def _missing(metric: str, scope: str) -> str:
    per = "" if scope == "step" else f" per {scope}"
    return f"{metric}{per} (recorded by {METRICS[metric, scope].recorded_by})"
