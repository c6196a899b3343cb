"""ShardedGradScaler: the loss is the unscaled one, skipped steps are those of all ranks, also when it is imported late."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed_training import batch, loss_of
from test_ddp import no_faults
from test_fsdp2 import sharded_model

import stabkit

Ranks = Callable[..., dict[int, Any]]
STEPS, BAD = 5, 3


def scaled(rank: int, logdir: str | None, early: bool) -> Any:
    """Trains with a loss that overflows on rank 1 in one step; the class is imported before or after watching begins."""
    name = "torch.distributed.fsdp.sharded_grad_scaler"
    if not early:
        for module in [m for m in sys.modules if m == name]:
            del sys.modules[module]
    else:
        __import__(name)
    model = sharded_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if logdir is None:
        return _steps(rank, model, optimizer)
    with stabkit.watch(model, optimizer, logdir, tensorboard=False):
        found = _steps(rank, model, optimizer)
    plain = __import__(name, fromlist=["ShardedGradScaler"]).ShardedGradScaler
    assert not hasattr(plain.scale, "__wrapped__") and not hasattr(torch.amp.GradScaler.__init__, "__wrapped__")
    return found


def _steps(rank: int, model: Any, optimizer: Any) -> Any:
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    scaler = ShardedGradScaler(device="cpu", init_scale=1024.0)
    losses = []
    for step in range(1, STEPS + 1):
        loss = loss_of(model, batch(step).chunk(2)[rank])
        if step == BAD and rank == 1:
            loss = loss * float("inf")
        losses.append(float(loss.detach()))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return losses, [p.to_local().detach().numpy().tobytes() for p in model.parameters()]


def test_a_sharded_scaler_is_seen_whenever_it_is_imported(ranks: Ranks, logdir: Path) -> None:
    unwatched = ranks(scaled, None, True)
    for early in (True, False):
        watched = ranks(scaled, str(logdir / str(early)), early)
        assert repr(watched) == repr(unwatched)
        run = stabkit.load(logdir / str(early))
        no_faults(run)
        assert run.series("skipped").values.tolist() == [float(step == BAD) for step in range(1, STEPS + 1)]
        assert run.series("loss_scale").values[0] == 1024.0
        for rank in range(2):
            np.testing.assert_allclose(run.by_rank("loss").series(f"rank{rank}").values, watched[rank][0], rtol=1e-6)
        norms = run.series("grad_norm").values
        assert np.isfinite(np.delete(norms, BAD - 1)).all() and not np.isfinite(norms[BAD - 1])
