"""What the baselines see of a run: curves that any logger has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.runlog import RunLog

__all__ = ["Curves", "curves_of"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curves:
    """A run as a row of numbers a step, NaN where a quantity is missing or not a number. One is equal to itself alone.

    Attributes:
        name: The run's.
        steps: int64 [n].
        loss: [n]. Where the log has none it is all NaN, and `known` says so.
        grad_norm: [n], before clipping where that was recorded, else as used.
        update_ratio: [n, tensors], of the steps whose tensors were measured; NaN elsewhere.
        grad_rms: [n, tensors], root mean square of a tensor's gradient as used.
        known: Whether there is a loss at all.
        excused: bool [n], steps at which an alarm is neither right nor false; None for nowhere.
    """

    name: str
    steps: NDArray[np.int64]
    loss: Numbers
    grad_norm: Numbers
    update_ratio: Numbers
    grad_rms: Numbers
    known: bool = True
    excused: NDArray[np.bool_] | None = None


def curves_of(run: RunLog, name: str = "", excused: Callable[[int], bool] = lambda step: False) -> Curves:
    """The curves of a run's first optimizer; `excused` tells at which steps an alarm is neither right nor false."""
    nothing = np.full(len(run.steps), np.nan)
    norm = next((m for m in ("grad_norm", "grad_norm_used") if run.has(m)), None)
    root = np.sqrt([max(1, tensor.numel) for tensor in run.tensors])
    with np.errstate(all="ignore"):
        rms = _table(run, "grad_norm_used") / root if run.tensors else nothing[:, None]
    return Curves(
        name, run.steps, run.series("loss").values if run.has("loss") else nothing,
        run.series(norm).values if norm else nothing, _table(run, "update_ratio"), rms, run.has("loss"),
        np.array([excused(step) for step in run.steps.tolist()], dtype=bool),
    )  # fmt: skip


def _table(run: RunLog, metric: str) -> Numbers:
    values = np.full((len(run.steps), max(1, len(run.tensors))), np.nan)
    if run.has(metric, "tensor"):
        table = run.table(metric)
        inside = np.isin(table.steps, run.steps)
        values[np.searchsorted(run.steps, table.steps[inside])] = table.values[inside]
    return values
