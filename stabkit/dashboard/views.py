"""What the Stability tab shows of a run, as plain data: the report's figures, findings in words, curves of a tensor, a rule."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from stabkit.analyzers import ANALYZERS, analyze
from stabkit.errors import UsageError
from stabkit.finding import Diagnosis, Finding, Status
from stabkit.metric import METRICS
from stabkit.report import figures
from stabkit.report.heatmap import heatmap, modules
from stabkit.report.json import encodable, finding_as_data
from stabkit.report.movers import LEAD, LIMIT, PAST, between, movers
from stabkit.report.pages import SECTIONS, paragraphs, sections
from stabkit.report.verdict import amounts, by_reason, looked, no_occasion, restart, when
from stabkit.runlog import RunLog, load

__all__ = ["view"]

_FINDINGS, _EVIDENCE, _MOVERS, _NAMES = 100, 24, 6, 300
_POINTS = 800
_CURVES = ("grad_norm", "grad_norm_used", "update_ratio", "rms_ratio", "exp_avg_sq_mean", "weight_norm", "grad_absmax")

Question = Mapping[str, Any]


def view(question: Question) -> Any:
    """The answer to a question.

    Args:
        question: "what" is a name of this file's views; "path" is where the run lies; the rest depends on the view.

    Raises:
        StabkitError: the log cannot be read, or there is no such thing in it.
    """
    return _VIEWS[question["what"]](question)


def _timeline(question: Question) -> Any:
    """The curves; the findings come with the verdict, which takes longer."""
    run = load(question["path"])
    nothing = Diagnosis(path="", source="", steps=0, outcomes=())
    return figures.timeline(run, nothing, *_range(question)) | {"optimizers": len(run.streams)}


def _heatmaps(question: Question) -> Any:
    run, quick = load(question["path"]), bool(question.get("quick"))
    drawn = (heatmap(run.optimizer(index), *_range(question), quick=quick) for index in range(len(run.streams)))
    return [found for found in drawn if found]


def _range(question: Question) -> tuple[int, int | None]:
    """The steps that are asked for: those from "first" to "last", or all."""
    return question.get("first", 1), question.get("last")


def _verdict(question: Question) -> Any:
    """What was found, who moved first, and what could not be looked at."""
    run = load(question["path"])
    diagnosis = analyze(run)
    able, asked = looked(diagnosis.outcomes)
    target, ranking = movers(run, diagnosis)
    found = diagnosis.findings
    return {
        "steps": diagnosis.steps,
        "amounts": amounts(found),
        "quantity": figures.telling(diagnosis),
        "looked": [able, asked],
        "findings": [_told(finding) for finding in found[:_FINDINGS]],
        "more": max(len(found) - _FINDINGS, 0),
        "bands": figures.timeline(run, diagnosis)["bands"][:_FINDINGS],
        "evidence": [figures.evidence(run, finding) for finding in found[:_EVIDENCE]],
        "movers": [asdict(mover) for mover in ranking[:_MOVERS]],
        "moved": len(ranking),
        "around": {"finding": found.index(target) + 1, "lead": LEAD, "past": PAST, "limit": LIMIT} if target else None,
        "checked": _checked(diagnosis),
        "notes": list(diagnosis.notes),
    }


def _told(finding: Finding) -> dict[str, Any]:
    """One finding: as in the JSON output, and in words."""
    told: dict[str, Any] = {"rule": finding.rule, "name": finding.name, **encodable(finding_as_data(finding))}
    told["tensors"], told["tensor_count"] = told["tensors"][:_NAMES], len(finding.tensors)
    harm = finding.event_step
    lead = harm - finding.first_step if harm is not None and harm > finding.first_step else None
    back = finding.last_good_step
    words = {"when": when(finding), "restart": restart(back) if back is not None and finding.severity > 1 else "", "lead": lead}
    return told | words


def _checked(diagnosis: Diagnosis) -> dict[str, Any]:
    def names(outcomes: Any) -> list[str]:
        return list(dict.fromkeys(f"{outcome.rule} {outcome.name}" for outcome in outcomes))

    return {
        "clear": names(outcome for outcome in diagnosis.outcomes if outcome.status is Status.CLEAR),
        "blind": {reason: names(o) for reason, o in by_reason(diagnosis.outcomes, Status.NOT_APPLICABLE).items()},
        "failed": {reason: names(o) for reason, o in by_reason(diagnosis.outcomes, Status.FAILED).items()},
        "absent": names(no_occasion(diagnosis.outcomes)),
    }


def _tensor(question: Question) -> Any:
    """The curves of one tensor, given by its row in the heatmap."""
    run = load(question["path"])
    if not 0 <= question["optimizer"] < len(run.streams):
        raise UsageError(f"there is no optimizer {question['optimizer']}")
    run = run.optimizer(question["optimizer"])
    order, _ = modules(run.tensors)
    if not 0 <= question["row"] < len(order):
        raise UsageError(f"there is no tensor {question['row']} in this optimizer")
    info = run.tensors[order[question["row"]]]
    run = replace(run, streams=(run.stream.only(order[question["row"]]),), index=0)
    first, last = _range(question)
    run = between(run, first, int(run.stream.tensor_steps[-1]) if last is None else last)
    shown = [metric for metric in _CURVES if run.has(metric, "tensor")]
    if "grad_norm" in shown and "grad_norm_used" in shown:
        shown.remove("grad_norm_used")
    curves = [_curve(run, metric, info.name) for metric in shown]
    return {"name": info.name, "shape": list(info.shape), "curves": [curve for curve in curves if curve]}


def _curve(run: RunLog, metric: str, tensor: str) -> dict[str, Any] | None:
    drawn = figures.curve(run.series(metric, tensor), _POINTS)
    if not np.isfinite(drawn["values"]).any():
        return None
    about = {"metric": metric, "tensor": "", "definition": METRICS[metric, "tensor"].definition, "marks": []}
    return about | drawn


def _rule(question: Question) -> Any:
    """The page of a rule: its sections, each a list of (text, whether it stands as it is)."""
    for analyzer in ANALYZERS:
        if analyzer.rule.code == question["code"]:
            rule, text = analyzer.rule, sections(sys.modules[type(analyzer).__module__].__doc__ or "")
            told = [[title, [list(each) for each in paragraphs(text[title])]] for title in SECTIONS if text.get(title)]
            return {"code": rule.code, "name": rule.name, "severity": str(rule.severity), "sections": told}
    raise UsageError(f"there is no rule {question['code']}")


_VIEWS: Mapping[str, Callable[[Question], Any]] = {
    "timeline": _timeline,
    "heatmaps": _heatmaps,
    "verdict": _verdict,
    "tensor": _tensor,
    "rule": _rule,
}
