"""The share of weights that an update left as they were: the sign of a dtype too coarse for the rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit


def train(logdir: Path, dtype: torch.dtype, lr: float, exact: bool = False) -> tuple[stabkit.RunLog, np.ndarray]:
    """Five steps; the run, and the true shares [steps, tensors] over all elements."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 4)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, eps=1e-4, foreach=True)  # 1e-8 is 0 in float16
    shares = []
    with stabkit.watch(model, optimizer, logdir, tensorboard=False, exact_updates=exact):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 16, dtype=dtype)).float().square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            shares.append([
                float(((p == b) & (p.grad != 0)).sum() / (p.grad != 0).sum())
                for p, b in zip(model.parameters(), before, strict=True)
            ])  # fmt: skip
    return stabkit.load(logdir), np.array(shares)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_watched_without_being_asked(tmp_path: Path, dtype: torch.dtype) -> None:
    run, truth = train(tmp_path / "run", dtype, 1e-4)
    np.testing.assert_allclose(run.table("unchanged_fraction").values[1:], truth)
    assert truth.max() > 0.5, "the case is what it says: most updates are rounded away"


def test_wide_weights_are_watched_with_exact_updates(tmp_path: Path) -> None:
    run, truth = train(tmp_path / "run", torch.float32, 1e-3, exact=True)
    np.testing.assert_allclose(run.table("unchanged_fraction").values[1:], truth)
    assert truth.max() < 0.1


def test_wide_weights_are_not_watched_unasked(tmp_path: Path) -> None:
    run, _ = train(tmp_path / "run", torch.float32, 1e-3)
    with pytest.raises(stabkit.errors.MissingMetricError, match="16 bits, or with exact_updates=True"):
        run.table("unchanged_fraction")


def test_a_rate_of_zero_says_nothing(tmp_path: Path) -> None:
    run, _ = train(tmp_path / "run", torch.bfloat16, 0.0)
    assert not run.has("unchanged_fraction", "tensor")
