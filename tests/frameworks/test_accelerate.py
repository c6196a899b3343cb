"""Loops of Accelerate inside one line, as its documentation writes them.

`prepare` wraps model, optimizer and scheduler; the optimizer that steps is the one inside. Norms are those that
`accelerator.clip_grad_norm_` returns, in float32: the tolerance is 1e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from framework_runs import SLOW, assert_agrees, same_weights, watched
from torch.nn import functional as F

import stabkit

accelerate = pytest.importorskip("accelerate", reason="needs the extra `frameworks` (make test-slow installs it)")

pytestmark = SLOW
STEPS = 24


class Account:
    """What Accelerate and the loop say of each step."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.lr: list[float] = []
        self.norm: list[float] = []
        self.skipped: list[bool] = []


def train(
    where: Path, watch: bool, accumulate: int = 1, precision: str = "no", given: bool = False, leftover: int = 0
) -> tuple[torch.nn.Module, Account]:
    """Train.

    Args:
        where: Holds the log.
        watch: Whether it is watched.
        accumulate: Micro-batches of a step.
        precision: Accelerate's mixed_precision.
        given: Pass the prepared model and optimizer to watch, instead of the bare model.
        leftover: Micro-batches at the end of the epoch that make no whole step: Accelerate steps with them all the same.
    """
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.utils.set_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * (STEPS * accumulate + leftover), 6, generator=generator)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, :3] + 0.1).argmax(1)), batch_size=8)
    bare = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(bare, lambda step: min(1.0, (step + 1) / 5))
    model, optimizer, loader, scheduler = accelerator.prepare(net, bare, data, schedule)
    account, parts = Account(), []
    line = stabkit.watch(model, optimizer, where / "run", tensorboard=False) if given else None
    with line or watched(watch, net, where / "run"):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(inputs).float(), targets)
                accelerator.backward(loss)
                parts.append(loss.item())
                if accelerator.sync_gradients:
                    account.norm.append(float(accelerator.clip_grad_norm_(model.parameters(), 0.3)))
                    account.lr.append(bare.param_groups[0]["lr"])
                    account.loss.append(sum(parts) / accumulate)
                    parts.clear()
                optimizer.step()
                if accelerator.sync_gradients:
                    account.skipped.append(bool(accelerator.optimizer_step_was_skipped))
                scheduler.step()
                optimizer.zero_grad()
    return net, account


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulating three": {"accumulate": 3},
    "accumulating three, two left over": {"accumulate": 3, "leftover": 2},
    "bfloat16": {"precision": "bf16"},
    "float16 with a scaler": {"precision": "fp16"},
    "prepared objects given": {"accumulate": 2, "given": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_loop_of_accelerate_agrees_with_its_own_account(tmp_path: Path, options: dict[str, Any]) -> None:
    model, account = train(tmp_path, True, **options)
    bare, _ = train(tmp_path / "bare", False, **{**options, "given": False})
    assert same_weights(model, bare)
    run = stabkit.load(tmp_path / "run")
    assert_agrees(run, loss=account.loss, lr=account.lr, grad_norm=account.norm, tolerance=1e-6)
    assert run.series("skipped").values.tolist() == account.skipped
