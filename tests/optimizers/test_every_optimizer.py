"""Every optimizer: bits as in the unwatched run, nothing raised, and what is recorded is what really happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stabkit
from stabkit.errors import MissingMetricError
from tests.optimizers.training import STEPS, Entry, Truth, train
from tests.optimizers.zoo import FRAMEWORKS, HANDMADE, TORCH

TOLERANCE = 1e-3


def assert_true(entry: Entry, logdir: Path, **watch: Any) -> tuple[stabkit.RunLog, Truth]:
    """Fail unless watching changed nothing and what was recorded is right."""
    truth = train(entry, logdir, **watch)
    assert truth.bits == train(entry).bits
    run = stabkit.load(logdir)
    assert not [event for event in run.events if event["event"] == "fault"]
    assert run.steps.tolist() == list(range(1, STEPS + 1)) and run.attempts == 1

    def close(metric: str, want: np.ndarray, absolute: Any = 0.0) -> None:
        got = run.table(metric).values[1:]
        known = ~np.isnan(got)
        assert known.any(), metric
        np.testing.assert_array_less(np.abs(got - want)[known], (TOLERANCE * np.abs(want) + absolute + 1e-300)[known], metric)

    moved, weight = truth.table("moved"), truth.table("weight")
    assert moved.max() > 0, "the case is one: something moved"
    close("weight_norm", weight)
    for metric in ("grad_norm_used", "grad_norm") if not entry.closure else ("grad_norm_used",):
        close(metric, truth.table("grad"))
        assert not np.isnan(run.table(metric).values[1:]).any()
    for metric in ("update_norm", "applied_update_norm"):
        if run.has(metric, "tensor"):
            close(metric, moved)
        if run.has(metric):
            whole = run.series(metric).values
            known = ~np.isnan(whole)
            np.testing.assert_allclose(whole[known], np.sqrt((moved**2).sum(axis=1))[known], rtol=TOLERANCE)
    close("weight_update_dot", truth.table("dot"), TOLERANCE * moved * weight)
    ratio = run.table("update_ratio").values[1:]
    assert not np.isnan(ratio[weight > 0]).any(), "one of the two updates is known of every step"
    np.testing.assert_allclose(ratio[weight > 0], (moved / np.where(weight > 0, weight, 1))[weight > 0], rtol=TOLERANCE)
    if run.has("exp_avg_norm", "tensor"):
        close("exp_avg_norm", truth.table("first"))
    assert run.has("exp_avg_sq_mean", "tensor") == (entry.second is not None)
    if entry.second is not None:
        close("exp_avg_sq_mean", truth.table("second"))
    return run, truth


@pytest.mark.parametrize("name", {**TORCH, **HANDMADE})
def test_what_is_recorded_is_true(logdir: Path, name: str) -> None:
    entry = {**TORCH, **HANDMADE}[name]
    run, _ = assert_true(entry, logdir)
    assert run.has("update_norm", "tensor") == entry.derived
    if entry.derived:  # after the proofs nothing is copied any more
        assert np.isfinite(run.table("update_norm").values[-1]).all()
        assert not run.has("applied_update_norm") or np.isnan(run.series("applied_update_norm").values[-1])
    else:
        assert np.isfinite(run.table("applied_update_norm").values[1:]).all()
        with pytest.raises(MissingMetricError, match=r"(measured|move), not worked out from its state"):
            run.table("update_norm")


@pytest.mark.parametrize("name", ["SGD nesterov (foreach)", "AdamW (fused)", "NAdam (foreach)", "LBFGS", *HANDMADE])
@pytest.mark.parametrize("watch", [{"exact_updates": True}, {"tensorboard": True}], ids=str)
def test_with_options(logdir: Path, name: str, watch: dict[str, Any]) -> None:
    run, _ = assert_true({**TORCH, **HANDMADE}[name], logdir, **watch)
    assert not watch.get("exact_updates") or run.table("update_ratio").basis == "applied"


@pytest.mark.parametrize("name", ["SGD nesterov (foreach)", "no state", "Hugging Face's AdamW", "LBFGS"])
def test_every_third_step(logdir: Path, name: str) -> None:
    entry = {**TORCH, **HANDMADE}[name]
    truth = train(entry, logdir, every=3)
    assert truth.bits == train(entry).bits
    ratios = stabkit.load(logdir).table("update_ratio")
    assert ratios.steps.tolist() == [0, 1, 4, 7]
    weight = truth.table("weight")
    want = truth.table("moved") / np.where(weight > 0, weight, np.nan)
    np.testing.assert_allclose(ratios.values[1:], want[::3], rtol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_of_other_packages(logdir: Path, name: str) -> None:
    entry = FRAMEWORKS[name]
    pytest.importorskip(entry.needs, reason=f"{entry.needs} is not installed: pip install -e '.[frameworks]'")
    run, _ = assert_true(entry, logdir)
    assert np.isfinite(run.table("applied_update_norm").values[1:]).all() and not run.has("update_norm", "tensor")
