"""Mistakes in clipping, loss scaling and accumulation (SK401 to SK408)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from tests.cases.wiring import Training, WiringCase
from tests.cases.wiring.loop import IMPLEMENTATIONS, Loop

__all__ = ["CASES", "looped", "written"]

Body = Callable[[nn.Module, torch.optim.Optimizer], object]


def looped(**options: Any) -> Training:
    """The shared loop with these options; where it raises, what was recorded until then."""

    def train(implementation: str, logdir: Path) -> stabkit.RunLog:
        loop = Loop(implementation=implementation, **options)
        with suppress(RuntimeError):
            return loop.run(logdir)
        return stabkit.load(logdir)

    return train


def written(body: Body) -> Training:
    """A loop of one's own, over the same model."""

    def train(implementation: str, logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **IMPLEMENTATIONS[implementation])
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            body(model, optimizer)
        return stabkit.load(logdir)

    return train


def losses(model: nn.Module, count: int) -> Iterator[torch.Tensor]:
    """Losses of fresh batches."""
    for _ in range(count):
        yield F.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 4))


def a_scaler_a_step(update: bool) -> Body:
    """A scaler made anew at every step, updated or not."""

    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for loss in losses(model, 6):
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            if update:
                scaler.update()
            optimizer.zero_grad()

    return body


def epochs(batches: int, left_over: str, micro_batches: int = 3, count: int = 3) -> Body:
    """Epochs of so many batches; what is left over at the end is "kept", "dropped" or "stepped"."""

    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(count):
            if left_over == "dropped":
                optimizer.zero_grad()
            for i, loss in enumerate(losses(model, batches), 1):
                last = left_over == "stepped" and i == batches
                (loss / ((batches % micro_batches or micro_batches) if last else micro_batches)).backward()
                if i % micro_batches == 0 or last:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()

    return body


def clipped_after_the_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Clipping between optimizer.step() and zero_grad()."""
    for loss in losses(model, 8):
        loss.backward()
        optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.zero_grad()


def case(rule: str, first_step: int, sick: Training, healthy: Training) -> WiringCase:
    """A mistake and its twin."""
    return WiringCase(rule=rule, sick=sick, healthy=healthy, first_step=first_step)


CASES: dict[str, WiringCase] = {
    "clipped before unscale_": case("SK401", 1, looped(scaler=True, unscale=False), looped(scaler=True)),
    "clipped before unscale_, accumulated": case(
        "SK401", 1, looped(scaler=True, unscale=False, micro_batches=3), looped(scaler=True, micro_batches=3)
    ),
    "stepped beside the scaler": case(
        "SK402", 1,
        looped(scaler=True, step_through=False, update=False, clip="", unscale=False), looped(scaler=True, clip=""),
    ),
    "unscaled, then stepped beside the scaler": case("SK402", 3, looped(scaler=True, step_through=False), looped(scaler=True)),
    "a scaler that is never updated": case("SK403", 1, looped(scaler=True, update=False), looped(scaler=True)),
    "a scaler that is never updated nor asked to unscale": case(
        "SK403", 1, looped(scaler=True, update=False, clip=""), looped(scaler=True, clip="")
    ),
    "a scaler made anew and never updated": case(
        "SK403", 4, written(a_scaler_a_step(update=False)), written(a_scaler_a_step(update=True))
    ),
    "clipped before backward": case("SK404", 3, looped(clip="before"), looped()),
    "clipped before backward, with a scaler": case(
        "SK404", 3, looped(clip="before", scaler=True, unscale=False), looped(scaler=True)
    ),
    "clipped before backward what the step before left": case(
        "SK404", 3, looped(clip="before", to_none=False), looped(to_none=False)
    ),
    "clipped after the step": case("SK404", 4, written(clipped_after_the_step), looped()),
    "clipped per micro-batch": case("SK405", 3, looped(clip="between", micro_batches=3), looped(micro_batches=3)),
    "never zeroed": case("SK406", 4, looped(zero=""), looped()),
    "never zeroed, accumulated and scaled": case(
        "SK406", 4, looped(zero="", micro_batches=3, scaler=True), looped(micro_batches=3, scaler=True)
    ),
    "accumulated, not divided": case("SK407", 3, looped(micro_batches=4, divide=False), looped(micro_batches=4)),
    "micro-batches left to the next epoch": case(
        "SK408", 11, written(epochs(29, "kept")), written(epochs(29, "stepped"))
    ),
    "micro-batches thrown away": case("SK408", 10, written(epochs(29, "dropped")), written(epochs(30, "dropped"))),
}  # fmt: skip
