"""Compares a merged log with the log of one process that saw the joined batches."""

from __future__ import annotations

import numpy as np

from stabkit.metric import TENSOR_METRICS
from stabkit.runlog import RunLog

STEP_METRICS = ("loss", "grad_norm", "grad_norm_used", "weight_norm", "update_norm", "clip_max_norm", "clip_coefficient")
TOLERANCE = 1e-5
ABSOLUTE = ("grad_momentum_cosine", "weight_update_dot")
ROUNDED = ("rms_ratio", "exp_avg_sq_min", "grad_momentum_cosine")
"""Quotients and smallest elements of numbers of which the two runs round the last bits differently."""


def agree(merged: RunLog, single: RunLog, unproved: tuple[str, ...] = (), tolerance: float = TOLERANCE) -> float:
    """Fail unless every quantity of the single run is in the merged one and the same; returns the worst relative error.

    Args:
        merged: The log of several ranks.
        single: That of one process.
        unproved: Quantities that may be missing from the merged log. Where they are not, they must be right.
        tolerance: The largest relative error allowed.
    """
    worst = 0.0
    assert merged.steps.tolist() == single.steps.tolist()
    assert {t.name: t.shape for t in merged.tensors} == {t.name: t.shape for t in single.tensors}
    assert {t.name: t.role for t in merged.tensors} == {t.name: t.role for t in single.tensors}
    for name in STEP_METRICS:
        if single.has(name) and (name not in unproved or merged.has(name)):
            worst = max(worst, _same(name, merged.series(name).values, single.series(name).values, tolerance, name in unproved))
    for metric in TENSOR_METRICS:
        if single.has(metric.name, "tensor"):
            ours, theirs = merged.table(metric.name), single.table(metric.name)
            assert ours.steps.tolist() == theirs.steps.tolist()
            order = [ours.tensors.index(tensor) for tensor in theirs.tensors]
            limit = tolerance * (100 if metric.name in ROUNDED else 1)
            worst = max(worst, _same(metric.name, ours.values[:, order], theirs.values, limit, metric.name in unproved))
    return worst


def _same(name: str, got: np.ndarray, want: np.ndarray, tolerance: float, unproved: bool) -> float:  # type: ignore[type-arg]
    want = np.where(np.isnan(got) & unproved, np.nan, want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{name}: missing in one of them")
    scale = np.maximum(np.abs(want), 1.0 if name in ABSOLUTE else 1e-30)
    error = np.where(got == want, 0.0, np.abs(got - want) / scale)
    worst = float(np.nanmax(error, initial=0.0))
    assert worst <= tolerance, f"{name}: off by {worst:.1e}\n{got}\n{want}"
    return 0.0 if name in ROUNDED else worst
