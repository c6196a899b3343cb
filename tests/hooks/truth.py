"""Holds a log against what the loop itself said had happened."""

from __future__ import annotations

import math
from typing import Any

import pytest

import stabkit
from tests.idioms.loop import Loop


def assert_true(run: Any, loop: Loop) -> None:
    """Every step of every optimizer is recorded as the loop itself says it was."""
    assert len(run.streams) == len(loop.truth)
    for i, steps in enumerate(loop.truth):
        view = run.optimizer(i)
        assert view.steps.tolist() == list(range(1, len(steps) + 1)), f"optimizer {i}"
        assert view.series("skipped").values.tolist() == [float(s.skipped) for s in steps]
        groups = max(len(s.lr) for s in steps)
        assert close(view.table("lr").values, [s.lr + [math.nan] * (groups - len(s.lr)) for s in steps])
        if all(s.calls >= 0 for s in steps):
            assert view.series("backward_count").values.tolist() == [s.calls for s in steps]
        taken = [not s.skipped for s in steps]
        for name in ("loss", "norm", "used"):
            metric = {"norm": "grad_norm", "used": "grad_norm_used"}.get(name, name)
            truth = [getattr(s, name) for s in steps]
            if all(map(math.isnan, truth)):
                continue
            got = view.series(metric).values
            chosen = [(g, t) for g, t, ok in zip(got, truth, taken, strict=True) if ok or name == "loss"]
            assert close([g for g, _ in chosen], [t for _, t in chosen]), f"{metric} of optimizer {i}"


def close(got: Any, want: Any) -> bool:
    return bool(got == pytest.approx(want, rel=1e-4, nan_ok=True)) if not hasattr(got, "shape") else bool(
        got.tolist() == [pytest.approx(row, rel=1e-6, nan_ok=True) for row in want]
    )


def assert_blameless(run: Any) -> None:
    """No rule of the catalogue finds anything of warning or above, and none breaks."""
    diagnosis = stabkit.analyze(run)
    assert not [o for o in diagnosis.outcomes if o.status == "failed"]
    assert not [f for f in diagnosis.findings if f.severity > stabkit.Severity.INFO], "a false alarm"
