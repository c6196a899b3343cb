"""Compares a log with the oracle, quantity by quantity."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from oracle import Oracle

from stabkit.metric import STEP_METRICS, TENSOR_METRICS, WIRING_METRICS

EXACT = {"grad_nonfinite", "weight_nonfinite", "backward_count", "applied_steps"}
ABSOLUTE = {"grad_momentum_cosine", "grad_zero_fraction", "eps_fraction"}
UNSEEN = {"unchanged_fraction"}  # nothing records it yet
WITHOUT_TRUTH = {"time", "loss_reduction", "beta1", "beta2", "eps", "clip_value", "loss_scale", "skipped"} | {
    metric.name for metric in WIRING_METRICS  # see test_wiring
}
TOLERANCE = 1e-4
MAY_BE_MISSING = {"weight_absmax", "weight_nonfinite"}  # of a tensor that the optimizer passed over

worst: dict[str, float] = {}
"""The largest error seen of each metric, over all tests of the session."""


def agree(run: Any, oracle: Oracle, missing: Collection[str] = (), steps: list[int] | None = None) -> None:
    """Fail unless everything the log holds is right, and nothing is missing from it but what may be.

    Args:
        run: The log.
        oracle: The truth, of the steps the log holds.
        missing: "grad_norm" (step) or "tensor:grad_norm" and so on: quantities that must all be missing.
        steps: The measured steps, where not all were.
    """
    wrong: list[str] = []
    for metric in TENSOR_METRICS:
        _tensor(metric.name, run, oracle, f"tensor:{metric.name}" in missing, steps, wrong)
    count = len(oracle.steps["loss"])
    assert run.steps.tolist() == list(range(1, count + 1))
    for metric in STEP_METRICS:
        if metric.name not in WITHOUT_TRUTH and metric.name != "update_ratio":
            _step(metric.name, run, oracle, metric.name in missing, steps, wrong)
    assert not wrong, "\n" + "\n".join(wrong[:40])


def _step(name: str, run: Any, oracle: Oracle, missing: bool, steps: list[int] | None, wrong: list[str]) -> None:
    by_group = isinstance(oracle.steps[name][0], list)
    want = np.array(oracle.steps[name], dtype=np.float64).reshape(len(run.steps), -1)
    got = np.full(want.shape, np.nan)
    if by_group:
        got = run.table(name).values
    elif run.has(name):
        got = run.series(name).values[:, None]
    for row, step in enumerate(run.steps.tolist()):
        for g, w in zip(got[row], want[row], strict=True):
            unmeasured = name in ("weight_norm", "update_norm", "grad_norm_used", "grad_norm") and steps and step not in steps
            uncopied = name == "applied_update_norm" and math.isnan(g)
            if missing or uncopied or (unmeasured and math.isnan(g)):
                w = math.nan
            _check(name, f"step {step}", g, w, 0.0, wrong)


def _tensor(name: str, run: Any, oracle: Oracle, missing: bool, steps: list[int] | None, wrong: list[str]) -> None:
    if name in UNSEEN:
        return
    if not run.has(name, "tensor"):
        rows = oracle.tensors.get(name, [[math.nan]] * len(oracle.scales))
        truth = np.array([rows[step - 1] for step in steps or run.steps.tolist()])
        if not (missing or name == "applied_update_norm" or np.isnan(truth).all()):
            wrong.append(f"{name}: not in the log")
        return
    table = run.table(name)
    measured = [s for s in table.steps.tolist() if s > 0]
    assert measured == (steps or run.steps.tolist())
    if name == "weight_norm" and table.steps[0] == 0:
        for tensor, g, w in zip(table.tensors, table.values[0], oracle.entry, strict=True):
            _check(name, f"step 0, {tensor}", g, w, 0.0, wrong)
    applied = run.table("applied_update_norm").values if run.has("applied_update_norm", "tensor") else None
    for row, step in enumerate(table.steps.tolist()):
        if step == 0:
            continue
        for i, tensor in enumerate(table.tensors):
            got = float(table.values[row, i])
            snapshot = applied is not None and not math.isnan(applied[row, i])
            want = _truth(name, oracle, step - 1, i, snapshot)
            idle = math.isnan(oracle.tensors["grad_norm_used"][step - 1][i])
            if math.isnan(got) and ((idle and name in MAY_BE_MISSING) or (name == "applied_update_norm" and not snapshot)):
                continue
            scale = oracle.scales[step - 1][i] if name == "weight_update_dot" else 0.0
            _check(name, f"step {step}, {tensor}", got, math.nan if missing else want, scale, wrong)


def _truth(name: str, oracle: Oracle, row: int, i: int, snapshot: bool) -> float:
    if name != "update_ratio":
        return float(oracle.tensors[name][row][i])
    update = oracle.tensors["applied_update_norm" if snapshot else "update_norm"][row][i]
    weight = oracle.tensors["weight_norm"][row][i]
    return update / weight if weight else math.nan


def _check(name: str, where: str, got: float, want: float, scale: float, wrong: list[str]) -> None:
    if math.isnan(want) or math.isnan(got):
        if math.isnan(want) != math.isnan(got):
            wrong.append(f"{name} at {where}: {got} instead of {want}")
        return
    if name in EXACT or math.isinf(want) or want == got:
        error = 0.0 if want == got else math.inf
    elif name in ABSOLUTE:
        error = abs(got - want)
    else:
        error = abs(got - want) / (scale or abs(want) or math.inf)
        if want == 0:
            error = math.inf
    worst[name] = max(worst.get(name, 0.0), error)
    if error > TOLERANCE:
        wrong.append(f"{name} at {where}: {got!r} instead of {want!r} (error {error:.1e})")
