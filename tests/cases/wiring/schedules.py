"""Mistakes in learning-rate schedules (SK409 to SK415)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

import stabkit
from tests.cases.wiring import Training, WiringCase
from tests.cases.wiring.loop import IMPLEMENTATIONS, Loop

__all__ = ["CASES", "cosine", "halving", "linear", "loop", "resumed", "warmup"]


def halving(optimizer: Any) -> Any:
    """A rate that is another at every step."""
    return schedulers.LambdaLR(optimizer, lambda step: 0.9**step)


def loop(**options: Any) -> Training:
    """A training by the loop with every mistake as an option."""
    return lambda implementation, logdir: Loop(implementation=implementation, **options).run(logdir)


def cosine(length: int) -> Callable[[Any], Any]:
    """A cosine of so many steps."""
    return lambda optimizer: schedulers.CosineAnnealingLR(optimizer, length)


def linear(length: int) -> Callable[[Any], Any]:
    """A linear decay to 0 over so many steps."""
    return lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / length))


def grouped(multiplies: bool) -> Training:
    """Two groups with rates 10 apart, under a schedule written by hand after the step."""

    def train(implementation: str, logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        groups = [{"params": model[0].parameters(), "lr": 1e-4}, {"params": model[2].parameters(), "lr": 1e-3}]
        optimizer = torch.optim.AdamW(groups, **IMPLEMENTATIONS[implementation])
        own = [group["lr"] for group in optimizer.param_groups]
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            for step in range(1, 13):
                _step(model, optimizer)
                for group, rate in zip(optimizer.param_groups, own, strict=True):
                    group["lr"] = (rate if multiplies else 1e-3) * 0.95**step
        return stabkit.load(logdir)

    return train


def warmup(optimizer: Any) -> Any:
    """A linear warmup of ten steps, each rate worked out from the first."""
    return schedulers.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))


def resumed(make: Callable[[Any], Any], loads_scheduler: bool) -> Training:
    """Two processes' worth of training: the second loads model, optimizer and, if it is right, scheduler."""

    def train(implementation: str, logdir: Path) -> stabkit.RunLog:
        saved: list[Any] = []
        for _ in range(2):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **IMPLEMENTATIONS[implementation])
            scheduler = make(optimizer)
            parts = [model, optimizer, scheduler]
            for part, state in zip(parts if loads_scheduler else parts[:2], saved, strict=False):
                part.load_state_dict(copy.deepcopy(state))
            with stabkit.watch(model, optimizer, logdir, tensorboard=False):
                for _ in range(15):
                    _step(model, optimizer)
                    scheduler.step()
            saved = copy.deepcopy([part.state_dict() for part in parts])
        return stabkit.load(logdir)

    return train


def _step(model: nn.Module, optimizer: Any) -> None:
    F.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 4)).backward()
    optimizer.step()
    optimizer.zero_grad()


OVERFLOWS = {"scaler": True, "overflows": (5, 9), "steps": 12, "scheduler": halving}
CASES: dict[str, WiringCase] = {
    "scheduler before the optimizer": WiringCase(
        rule="SK409", first_step=3, sick=loop(scheduler=halving, schedule="before"), healthy=loop(scheduler=halving)
    ),
    "scheduler at the top of the loop": WiringCase(
        rule="SK409", first_step=3, sick=loop(scheduler=halving, schedule="top"), healthy=loop(scheduler=halving)
    ),
    "scheduler never stepped": WiringCase(
        rule="SK410", first_step=24, sick=loop(steps=24, scheduler=halving, schedule=""),
        healthy=loop(steps=24, scheduler=halving),
    ),
    "cosine past its end": WiringCase(
        rule="SK411", first_step=14, sick=loop(steps=18, scheduler=cosine(10)), healthy=loop(steps=18, scheduler=cosine(18))
    ),
    "linear decay past its end": WiringCase(
        rule="SK411", first_step=30, sick=loop(steps=32, scheduler=linear(10)), healthy=loop(steps=32, scheduler=linear(32))
    ),
    "skipped steps counted": WiringCase(
        rule="SK412", first_step=6, sick=loop(**OVERFLOWS), healthy=loop(schedule="skipped", **OVERFLOWS)
    ),
    "scheduler per micro-batch": WiringCase(
        rule="SK413", first_step=3, sick=loop(micro_batches=4, scheduler=halving, schedule="micro"),
        healthy=loop(micro_batches=4, scheduler=halving),
    ),
    "one rate for all groups": WiringCase(rule="SK414", first_step=4, sick=grouped(False), healthy=grouped(True)),
    "schedule lost on resume": WiringCase(
        rule="SK415", first_step=21, sick=resumed(warmup, False), healthy=resumed(warmup, True)
    ),
    "schedule lost on resume, going on from the rate it finds": WiringCase(
        rule="SK415", first_step=21, sick=resumed(cosine(30), False), healthy=resumed(cosine(30), True)
    ),
}  # fmt: skip
