"""Diagnoses as JSON, for machines. Schema 1:

    {"schema": 1,
     "runs": [{"path", "source", "steps",              one entry per PATH, in order
               "notes": [str],                         what the reader had to say: damage, attempts, overlaps
               "outcomes": [{"rule", "name",           one per rule and optimizer, in the catalogue's order
                             "status",                 "found", "clear", "not-applicable" or "failed"
                             "reason",                 why it could not look; "" otherwise
                             "occasion",               false where the run has nothing of what the rule is about
                             "findings": [FINDING]}]},
              {"path", "error": str}]}                 for a PATH that could not be read

    FINDING = {"severity",                             "info", "warning" or "error"
               "message", "first_step", "last_step",
               "event_step", "last_good_step",         null where there is none
               "state",                                "ongoing" or "recovered"
               "tensors": [str],                       the culprit first
               "evidence": [{"metric", "observed", "expected", "step", "tensor", "note"}],
               "advice",
               "remedy": {NAME: number},               what the advice says first, by the names of `stabkit.finding.REMEDIES`
               "confidence",                           [precision, low, high] as measured; null until it has been
               "batches": {STEP: [str]},               what log(batch=...) called those of first_step and event_step
               "consequences": [FINDING + "rule", "name"]}   findings of other rules that this one explains

`--follow` prints a document per line instead, one for each finding as it appears:

    {"schema": 1, "path", "steps", "rule", "name"} + FINDING   "steps": how many steps the log had then

A number that is not finite is the string "nan", "inf" or "-inf". The text is pure ASCII. A key may be added without
notice; when one changes its meaning or goes away, "schema" changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from stabkit.finding import Diagnosis, Finding, Outcome

__all__ = ["SCHEMA", "Unreadable", "document", "encodable", "finding_as_data", "line", "render"]

SCHEMA = 1


@dataclass(frozen=True)
class Unreadable:
    """A path that could not be judged, and why."""

    path: str
    error: str


def render(runs: Iterable[Diagnosis | Unreadable]) -> str:
    """The document as text, without a newline at its end."""
    text = json.dumps(encodable(document(runs)), indent=2, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is


def line(diagnosis: Diagnosis, finding: Finding) -> str:
    """One finding of a run that is going on, as a document in one line, without a newline at its end."""
    about = {"schema": SCHEMA, "path": diagnosis.path, "steps": diagnosis.steps, "rule": finding.rule, "name": finding.name}
    return json.dumps(encodable(about | finding_as_data(finding)), allow_nan=False).replace("\x7f", "\\u007f")


def document(runs: Iterable[Diagnosis | Unreadable]) -> dict[str, Any]:
    """The document as plain data."""
    return {"schema": SCHEMA, "runs": [asdict(run) if isinstance(run, Unreadable) else _run(run) for run in runs]}


def _run(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "path": diagnosis.path,
        "source": diagnosis.source,
        "steps": diagnosis.steps,
        "notes": list(diagnosis.notes),
        "outcomes": [_outcome(outcome) for outcome in diagnosis.outcomes],
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "rule": outcome.rule,
        "name": outcome.name,
        "status": str(outcome.status),
        "reason": outcome.reason,
        "occasion": outcome.occasion,
        "findings": [finding_as_data(finding) for finding in outcome.findings],
    }


def finding_as_data(finding: Finding) -> dict[str, Any]:
    """A FINDING as plain data."""
    return {
        "severity": str(finding.severity),
        "message": finding.message,
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "event_step": finding.event_step,
        "last_good_step": finding.last_good_step,
        "state": str(finding.state),
        "tensors": list(finding.tensors),
        "evidence": [asdict(item) for item in finding.evidence],
        "advice": finding.advice,
        "remedy": dict(finding.remedy),
        "confidence": finding.confidence and list(finding.confidence),
        "batches": {str(step): list(names) for step, names in finding.batches.items()},
        "consequences": [{"rule": c.rule, "name": c.name, **finding_as_data(c)} for c in finding.consequences],
    }


def encodable(value: Any) -> Any:
    """The value with what JSON cannot hold written as strings: numbers that are not finite, and half characters."""
    if isinstance(value, dict):
        return {key: encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encodable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, str):  # half a character (from a file name that is not UTF-8) is refused by strict readers
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    # A rule may hand out NumPy's numbers, which json refuses.
    return encodable(value.item()) if hasattr(value, "item") else value
