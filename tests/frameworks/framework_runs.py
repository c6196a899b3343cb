"""Shared by the tests of the frameworks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit

SLOW = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]


def watched(watch: bool, model: torch.nn.Module, logdir: Path) -> Any:
    """The one line, or nothing."""
    return stabkit.watch(model, logdir=logdir, tensorboard=False) if watch else contextlib.nullcontext()


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def assert_agrees(
    run: Any, loss: Sequence[float], lr: Sequence[float], grad_norm: Sequence[float], tolerance: float
) -> None:
    """The log has what the framework logged, step by step, and nothing is found wrong.

    Args:
        run: The log.
        loss: By the framework's account.
        lr: The rate each step used.
        grad_norm: Before clipping.
        tolerance: Relative, of the loss and the norm.
    """
    assert not [event for event in run.events if event["event"] in ("fault", "unseen", "replaced")]
    assert run.steps.tolist() == list(range(1, len(loss) + 1))
    rates = run.table("lr").values
    assert rates == pytest.approx(np.repeat(np.array(lr)[:, None], rates.shape[1], axis=1), rel=1e-12)
    assert run.series("loss").values.tolist() == pytest.approx(loss, rel=tolerance)
    assert run.series("grad_norm").values.tolist() == pytest.approx(grad_norm, rel=tolerance)
    diagnosis = stabkit.analyze(run)
    assert not [o for o in diagnosis.outcomes if o.status == "failed"]
    assert not [f for f in diagnosis.findings if f.severity > stabkit.Severity.INFO], "a false alarm"
