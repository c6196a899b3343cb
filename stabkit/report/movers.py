"""Which tensor moved first: around the worst finding, when each tensor rose above its own past, and by how much.

A disturbance starts somewhere and spreads. The order in which tensors leave their usual range often names the place where
to look. It is an observation, not a verdict: it rests on one limit for all tensors, and no rule uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stabkit.finding import Diagnosis, Finding
from stabkit.report.heatmap import QUANTITIES
from stabkit.runlog import RunLog
from stabkit.runlog.columns import part_of

__all__ = ["LIMIT", "PAST", "Mover", "between", "movers"]

PAST, AFTER = 60, 10
"""Steps before the finding that are a tensor's own past, and steps after it that are still looked at."""
LEAD = 8
"""Steps before the finding in which a tensor may have moved; they are not part of its past. The ratio of gradient to second
moment has been seen to lead a loss spike by 1 to 8 steps (Wortsman et al. 2023, arXiv:2309.14322)."""
LIMIT = 8.0
"""Robust standard deviations of the logarithm."""
_LEAST_PAST, _LEAST_SPREAD, _MAD_TO_SIGMA = 8, 0.02, 1.4826
_LOOKED_AT = ("grad_norm", "grad_norm_used", "rms_ratio", "update_ratio")
"""Not the second moment, which drifts for long without harm."""


@dataclass(frozen=True, kw_only=True)
class Mover:
    """A tensor that left its own past.

    Attributes:
        tensor: Its name.
        step: The first step at which it did.
        metric: The quantity that did.
        label: How the quantity is called.
        deviation: How far from the median of its past, in robust standard deviations of the logarithm; inf for a value that
            is no number.
        value: The value there.
        usual: The median before.
    """

    tensor: str
    step: int
    metric: str
    label: str
    deviation: float
    value: float
    usual: float


def between(run: RunLog, first: int, last: int) -> RunLog:
    """The run's current optimizer with the tensor records of some steps only: those of all may be gigabytes."""
    stream = run.stream
    begin = int(np.searchsorted(stream.tensor_steps, max(first, 1), "left"))
    end = int(np.searchsorted(stream.tensor_steps, last, "right"))
    columns = part_of(stream.columns, begin, end)
    return replace(run, streams=(replace(stream, tensor_steps=stream.tensor_steps[begin:end], columns=columns),), index=0)


def movers(run: RunLog, diagnosis: Diagnosis) -> tuple[Finding | None, list[Mover]]:
    """The finding looked at, and who moved around it, the first mover first; among those of one step, the furthest."""
    finding = next((f for f in diagnosis.findings if f.severity > 1), None)
    if finding is None:
        return None, []
    first: dict[str, Mover] = {}
    for index in range(len(run.streams)):
        near = between(run.optimizer(index), finding.first_step - LEAD - PAST, finding.first_step + AFTER)
        for metric in _LOOKED_AT:
            if near.has(metric, "tensor") and not (metric == "grad_norm_used" and near.has("grad_norm", "tensor")):
                for mover in _leavers(near, metric, finding.first_step - LEAD):
                    held = first.get(mover.tensor)
                    if held is None or (mover.step, -mover.deviation) < (held.step, -held.deviation):
                        first[mover.tensor] = mover
    return finding, sorted(first.values(), key=lambda mover: (mover.step, -mover.deviation))


def _leavers(run: RunLog, metric: str, start: int) -> list[Mover]:
    """Each tensor's first step from `start` on outside of its range before."""
    table = run.table(metric)
    with np.errstate(all="ignore"):
        logs = np.log10(np.where(table.values > 0, table.values, np.nan))
        past = table.steps < start
        known = np.sum(np.isfinite(logs[past]), axis=0) >= _LEAST_PAST
        if not known.any():
            return []
        level = np.full(logs.shape[1], np.nan)
        spread = np.full(logs.shape[1], np.nan)
        level[known] = np.nanmedian(logs[past][:, known], axis=0)
        spread[known] = _MAD_TO_SIGMA * np.nanmedian(np.abs(logs[past][:, known] - level[known]), axis=0)
        deviation = (logs - level) / np.maximum(spread, _LEAST_SPREAD)
    deviation[np.isinf(table.values)] = np.inf
    deviation = np.where(_broken(run) & known, np.inf, deviation)
    left = (deviation > LIMIT) & ~past[:, None]
    found: list[Mover] = []
    for column in np.flatnonzero(left.any(axis=0)):
        row = int(np.argmax(left[:, column]))
        mover = Mover(
            tensor=table.tensors[column],
            step=int(table.steps[row]),
            metric=metric,
            label=QUANTITIES[metric],
            deviation=float(deviation[row, column]),
            value=float(table.values[row, column]),
            usual=float(10 ** level[column]),
        )
        found.append(mover)
    return found


def _broken(run: RunLog) -> Any:
    """Where a gradient had elements that are no numbers [rows, tensors]."""
    stream = run.stream
    shape = (len(stream.tensor_steps), len(run.tensors))
    return np.nan_to_num(stream.columns["grad_nonfinite"]) > 0 if "grad_nonfinite" in stream.columns else np.zeros(shape, bool)
