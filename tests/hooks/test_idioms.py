"""Every correct loop of the corpus: invisible, true, and blamed for nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import stabkit
from tests.idioms import IDIOMS, Loop, run_idiom

WAYS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "adopted": {"foreach": True, "adopt": True},
}


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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_is_unchanged_recorded_truly_and_blamed_for_nothing(tmp_path: Path, name: str, way: str) -> None:
    loop = run_idiom(name, tmp_path / "run", **WAYS[way])
    assert loop.result == run_idiom(name, None, **WAYS[way]).result
    run = stabkit.load(tmp_path / "run")
    assert not [e for e in run.events if e["event"] == "fault"]
    assert_true(run, loop)
    diagnosis = stabkit.analyze(run)
    assert not [o for o in diagnosis.outcomes if o.status == "failed"]
    assert not [f for f in diagnosis.findings if f.severity > stabkit.Severity.INFO], "a false alarm"
