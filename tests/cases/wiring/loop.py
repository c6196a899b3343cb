"""A small real training loop with every classic wiring mistake as an option; without options it is correct.

The tests of the facts (tests/hooks/test_wiring.py) and those of the rules on wiring share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import stabkit

IMPLEMENTATIONS = {"fused": {"fused": True}, "foreach": {"foreach": True}}


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the loop is wired.

    Attributes:
        implementation: Of AdamW: "fused" or "foreach".
        steps: Optimizer steps to attempt.
        micro_batches: Backward calls of each step.
        divide: Whether the loss is divided by their number.
        scaler: Whether a GradScaler is used.
        unscale: Whether `unscale_` is called before clipping.
        step_through: Whether the scaler makes the step.
        update: Whether the scaler is updated.
        overflows: Steps (from 1) whose loss is infinite; with a scaler they are skipped.
        clip: "after" the last backward, "before" it, "between" the micro-batches, "by hand", or "" for none.
        zero: "after" the step, "before" backward, or "" for never.
        to_none: Whether zeroing sets gradients to None.
        scheduler: Makes a scheduler for the optimizer, or None.
        schedule: When it is stepped: "after" the optimizer, "before" it, at the "top" of the loop, per "micro" batch, if not
            "skipped" by the scaler, or "" for never.
    """

    implementation: str = "fused"
    steps: int = 8
    micro_batches: int = 1
    divide: bool = True
    scaler: bool = False
    unscale: bool = True
    step_through: bool = True
    update: bool = True
    overflows: tuple[int, ...] = ()
    clip: str = "after"
    zero: str = "after"
    to_none: bool = True
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    schedule: str = "after"

    def run(self, logdir: Path) -> stabkit.RunLog:
        """Train, and return what was recorded."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **IMPLEMENTATIONS[self.implementation])
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=self.scaler)
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            for step in range(1, self.steps + 1):
                self._step(step, model, optimizer, scheduler, scaler)
        return stabkit.load(logdir)

    def _step(self, step: int, model: nn.Module, optimizer: Any, scheduler: Any, scaler: Any) -> None:
        if scheduler and self.schedule == "top":
            scheduler.step()
        if self.zero == "before":
            optimizer.zero_grad(set_to_none=self.to_none)
        if self.clip == "before":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for _ in range(self.micro_batches):
            loss = F.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 4))
            if self.divide and self.micro_batches > 1:
                loss = loss / self.micro_batches
            if step in self.overflows:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if self.clip == "between":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if scheduler and self.schedule == "micro":
                scheduler.step()
        if self.clip and self.unscale:
            scaler.unscale_(optimizer)
        if self.clip == "after":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if self.clip == "by hand":
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.mul_(0.5)
        if scheduler and self.schedule == "before":
            scheduler.step()
        scale = scaler.get_scale()
        scaler.step(optimizer) if self.step_through else optimizer.step()
        if self.update:
            scaler.update()
        if self.zero == "after":
            optimizer.zero_grad(set_to_none=self.to_none)
        if scheduler and (self.schedule == "after" or (self.schedule == "skipped" and scaler.get_scale() >= scale)):
            scheduler.step()
