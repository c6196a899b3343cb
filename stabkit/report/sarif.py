"""Findings as SARIF 2.1.0, the format in which code-scanning services take the results of a tool.

A result is a finding; its location is the log it was found in, for a run has no line of source. The finding as in
`stabkit.report.json` is in its properties. What could not be read or looked at is a notification, so that an empty list of
results is not taken for a clear run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from stabkit.finding import Diagnosis, Finding, Severity, Status
from stabkit.report.json import Unreadable, encodable, finding_as_data

__all__ = ["render"]

_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(runs: Iterable[Diagnosis | Unreadable]) -> str:
    """The document as text, without a newline at its end."""
    judged = list(runs)
    results = [_result(run, finding) for run in judged if isinstance(run, Diagnosis) for finding in run.findings]
    rules = {
        outcome.rule: {"id": outcome.rule, "name": outcome.name, "shortDescription": {"text": outcome.name.replace("-", " ")}}
        for run in judged
        if isinstance(run, Diagnosis)
        for outcome in run.outcomes
    }
    invocation = {
        "executionSuccessful": not any(isinstance(run, Unreadable) for run in judged),
        "toolExecutionNotifications": [each for run in judged for each in _notifications(run)],
    }
    tool = {"driver": {"name": "stabkit", "rules": list(rules.values())}}
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": tool, "invocations": [invocation], "results": results}],
    }
    return json.dumps(encodable(document), indent=2, allow_nan=False)


def _result(run: Diagnosis, finding: Finding) -> dict[str, Any]:
    advice = f" Try: {finding.advice}" if finding.advice else ""
    same = "\0".join((finding.rule, str(finding.first_step), *finding.tensors[:1]))
    return {
        "ruleId": finding.rule,
        "level": _LEVEL[finding.severity],
        "message": {"text": f"Step {finding.first_step}: {finding.message}.{advice}"},
        "locations": [_location(run.path)],
        "partialFingerprints": {"stabkit/v1": hashlib.sha256(same.encode(errors="backslashreplace")).hexdigest()[:32]},
        "properties": finding_as_data(finding),
    }


def _location(path: str) -> dict[str, Any]:
    uri = quote(PurePath(path or "run").as_posix(), errors="backslashreplace")
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}


def _notifications(run: Diagnosis | Unreadable) -> Iterator[dict[str, Any]]:
    if isinstance(run, Unreadable):
        yield {"level": "error", "message": {"text": f"{run.path}: {run.error}"}, "locations": [_location(run.path)]}
        return
    for outcome in run.outcomes:
        if outcome.occasion and outcome.status in (Status.NOT_APPLICABLE, Status.FAILED):
            verb = "could not look" if outcome.status is Status.NOT_APPLICABLE else "failed"
            yield {
                "level": "note" if outcome.status is Status.NOT_APPLICABLE else "error",
                "message": {"text": f"{outcome.rule} {outcome.name} {verb}: {outcome.reason}"},
                "locations": [_location(run.path)],
            }
