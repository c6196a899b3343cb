"""What the pictures of a run show, as plain data: one source for the page and for any other medium that draws them.

Every figure is a dict of numbers, texts and lists. Who draws it decides on colours and sizes; `page/*.js` is what draws it in
a browser. Long series come with their extremes kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from stabkit.errors import StabkitError
from stabkit.finding import Diagnosis, Evidence, Finding
from stabkit.metric import METRICS, Array
from stabkit.report.downsample import keep
from stabkit.report.heatmap import QUANTITIES, heatmap
from stabkit.report.movers import between
from stabkit.runlog import RunLog, Series

__all__ = ["curve", "evidence", "figures", "telling", "timeline"]

_POINTS, _POINTS_OF_EVIDENCE = 1800, 600
_SERIES = {"loss": "Loss", "grad_norm": "Gradient norm", "grad_norm_used": "Gradient norm, as used", "lr": "Learning rate"}
_LEAST_AROUND = 15
"""Steps shown before and after a finding, at the least."""
_MOST_PLOTS = 2
_DECADES = 1.5
"""A series that spans more than this is drawn on a logarithmic axis."""


def figures(run: RunLog, diagnosis: Diagnosis) -> dict[str, Any]:
    """All figures of a run.

    Returns:
        "timeline": as `timeline`; "quantity": of the heatmaps, the one to show first; "heatmaps": one for each optimizer
        that has any; "evidence": of each finding, consequences not included, as `evidence`.
    """
    maps = (heatmap(run.optimizer(index)) for index in range(len(run.streams)))
    return {
        "timeline": timeline(run, diagnosis),
        "quantity": telling(diagnosis),
        "heatmaps": [found for found in maps if found],
        "evidence": [evidence(run, finding) for finding in diagnosis.findings],
    }


def telling(diagnosis: Diagnosis) -> str:
    """The quantity of the heatmap that the worst finding is about."""
    for item in (item for finding in diagnosis.findings[:1] for item in finding.evidence):
        if item.metric in QUANTITIES or item.metric.startswith("grad_"):
            return item.metric if item.metric in QUANTITIES else "grad_norm"
    return "update_ratio"


def timeline(run: RunLog, diagnosis: Diagnosis, first: int = 1, last: int | None = None) -> dict[str, Any]:
    """Loss, gradient norm and rate, and where the findings lie.

    Args:
        run: The run.
        diagnosis: What was found.
        first: The first step to draw.
        last: The last one; None for all there are.

    Returns:
        "first" and "last" step; "lines", each with "metric", "label", "log" (whether the axis is logarithmic), "steps" and
        "values"; "bands", each with "number" (from 1, of the finding), "first", "last", "event", "severity", "title".
    """
    steps = run.steps[(run.steps >= first) & (run.steps <= (np.inf if last is None else last))]
    first, last = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    shown = [metric for metric in _SERIES if run.has(metric)]
    if "grad_norm" in shown and "grad_norm_used" in shown:
        shown.remove("grad_norm_used")
    bands = [_band(number, finding) for number, finding in enumerate(diagnosis.findings, 1)]
    return {"first": first, "last": last, "lines": [_line(run, metric, first, last) for metric in shown], "bands": bands}


def _band(number: int, finding: Finding) -> dict[str, Any]:
    where = {"first": finding.first_step, "last": finding.last_step, "event": finding.event_step}
    title = f"{finding.rule} {finding.name}"
    return {"number": number, **where, "severity": str(finding.severity), "title": title, "message": finding.message}


def _line(run: RunLog, metric: str, first: int, last: int) -> dict[str, Any]:
    series = run.series(metric)
    rows = (series.steps >= first) & (series.steps <= last)
    drawn = curve(replace(series, steps=series.steps[rows], values=series.values[rows]), _POINTS)
    return {"metric": metric, "label": _SERIES[metric], **drawn, "log": metric != "lr" and drawn["log"]}


def curve(series: Series, most: int) -> dict[str, Any]:
    """What there is to draw of a series, its extremes kept; the weights at entry (step 0) are no step.

    Args:
        series: One quantity over the steps.
        most: About how many points.

    Returns:
        "log" (whether a logarithmic axis shows more), "steps" and "values".
    """
    rows = series.steps > 0
    steps, values = series.steps[rows], series.values[rows]
    kept = keep(values, most)
    return {"log": _is_wide(values), "steps": steps[kept].tolist(), "values": _numbers(values[kept])}


def evidence(run: RunLog, finding: Finding) -> list[dict[str, Any]]:
    """The plots of one finding: what was observed against what was expected, a stretch before it and after it.

    Returns:
        At most two, each with "metric", "tensor" (or ""), "log", "steps", "values", "first" and "last" (of the finding),
        "marks" (the numbers behind the finding: "step", "observed", "expected").
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    loss = Evidence(metric="loss", observed=float("nan"))
    for item in (*finding.evidence, loss):
        key = (item.metric, item.tensor or "")
        if key in found:
            found[key]["marks"] += _marks([item])
        elif len(found) < _MOST_PLOTS:
            plot = _plot(run, finding, item)
            found |= {key: plot} if plot else {}
    return list(found.values())


def _plot(run: RunLog, finding: Finding, item: Evidence) -> dict[str, Any] | None:
    around = max(_LEAST_AROUND, (finding.last_step - finding.first_step) // 2)
    for index in range(len(run.streams)):
        seen = run.optimizer(index)
        tensors = {tensor.name for tensor in seen.tensors}
        if item.tensor is not None and item.tensor not in tensors:
            continue
        near = between(seen, finding.first_step - around, finding.last_step + around)
        try:
            series = near.series(item.metric, item.tensor)
        except (StabkitError, KeyError):  # a quantity that the rule derived by itself
            continue
        rows = (series.steps >= finding.first_step - around) & (series.steps <= finding.last_step + around) & (series.steps > 0)
        series = replace(series, steps=series.steps[rows], values=series.values[rows])
        if np.sum(np.isfinite(series.values)) < 2:
            continue
        known = METRICS.get((item.metric, "tensor" if item.tensor else "step")) or METRICS.get((item.metric, "group"))
        about = {"metric": item.metric, "tensor": item.tensor or "", "definition": known.definition if known else ""}
        where = {"first": finding.first_step, "last": finding.last_step, "severity": str(finding.severity)}
        return {**about, **where, **curve(series, _POINTS_OF_EVIDENCE), "marks": _marks([item])}
    return None


def _marks(items: Iterable[Evidence]) -> list[dict[str, Any]]:
    seen = [item for item in items if item.step is not None]
    limits = [None if item.expected is None else float(item.expected) for item in seen]
    return [{"step": i.step, "observed": float(i.observed), "expected": e} for i, e in zip(seen, limits, strict=True)]


def _is_wide(values: Array) -> bool:
    """Whether a logarithmic axis shows more: all positive, over more than a decade or so."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and np.log10(known.max()) - np.log10(known.min()) > _DECADES)


def _numbers(values: Array) -> list[float]:
    """With six digits: more than a picture shows."""
    return [float(f"{value:.6g}") for value in values.tolist()]
