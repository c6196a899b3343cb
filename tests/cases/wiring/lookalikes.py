"""Loops over two models that look like a mistake in clipping, loss scaling or accumulation, and are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

__all__ = ["FINE", "STEPS", "Parts", "update"]

STEPS = 6


@dataclass
class Parts:
    """Two models with an optimizer each, one of both, and a scaler."""

    models: list[nn.Module] = field(default_factory=lambda: [nn.Linear(4, 4), nn.Linear(4, 4)])
    scaler: Any = field(default_factory=lambda: torch.amp.GradScaler("cpu", init_scale=1024.0))

    def __post_init__(self) -> None:
        self.both = nn.ModuleList(self.models)
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in self.models]
        self.optimizer = torch.optim.AdamW(self.both.parameters(), lr=1e-3)

    def loss(self, index: int = 0) -> torch.Tensor:
        """Of a fresh batch, by one of the models."""
        return F.mse_loss(self.models[index](torch.randn(3, 4)), torch.randn(3, 4))

    def whole(self) -> torch.Tensor:
        """Of a fresh batch, by one model after the other."""
        return F.mse_loss(self.models[1](self.models[0](torch.randn(3, 4)).tanh()), torch.randn(3, 4))


FINE: dict[str, Callable[[Parts], None]] = {}
"""Loops with one optimizer that are right, whatever they look like."""


def fine(loop: Callable[[Parts], None]) -> Callable[[Parts], None]:
    """Put a loop among the right ones."""
    FINE[loop.__name__] = loop
    return loop


def update(parts: Parts) -> None:
    """Step through the scaler."""
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad()


@fine
def a_limit_times_the_scale(parts: Parts) -> None:
    for _ in range(STEPS):
        parts.scaler.scale(parts.whole()).backward()
        clip_grad_norm_(parts.both.parameters(), 0.5 * parts.scaler.get_scale())
        clip_grad_value_(parts.both.parameters(), 0.1 * parts.scaler.get_scale())
        update(parts)


@fine
def a_scale_of_one(parts: Parts) -> None:
    parts.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for _ in range(STEPS):
        parts.scaler.scale(parts.whole()).backward()
        clip_grad_norm_(parts.both.parameters(), 0.5)
        update(parts)


@fine
def a_scaler_that_is_off(parts: Parts) -> None:
    parts.scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(STEPS):
        parts.scaler.scale(parts.whole()).backward()
        clip_grad_norm_(parts.both.parameters(), 0.5)
        update(parts)


@fine
def a_scaler_left_and_taken_up_again(parts: Parts) -> None:
    for phase in range(2):
        for _ in range(STEPS):
            parts.scaler.scale(parts.whole()).backward()
            parts.scaler.unscale_(parts.optimizer)
            clip_grad_norm_(parts.both.parameters(), 0.5)
            update(parts)
        for _ in range(STEPS * (1 - phase)):
            parts.whole().backward()
            clip_grad_norm_(parts.both.parameters(), 0.5)
            parts.optimizer.step()
            parts.optimizer.zero_grad()


@fine
def unscaled_by_hand(parts: Parts) -> None:
    for _ in range(STEPS):
        parts.scaler.scale(parts.whole()).backward()
        for p in parts.both.parameters():
            p.grad.div_(parts.scaler.get_scale())
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def looked_at_by_hand_once(parts: Parts) -> None:
    for step in range(STEPS):
        parts.scaler.scale(parts.whole()).backward()
        parts.scaler.unscale_(parts.optimizer)
        parts.optimizer.step() if step == 2 else parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        parts.optimizer.zero_grad()


@fine
def a_scale_set_by_hand(parts: Parts) -> None:
    for _ in range(STEPS):
        parts.scaler.scale(parts.whole()).backward()
        parts.scaler.step(parts.optimizer)
        parts.scaler.update(new_scale=512.0)
        parts.optimizer.zero_grad()


@fine
def another_scaler_for_another_phase(parts: Parts) -> None:
    for _ in range(2):
        parts.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for _ in range(STEPS):
            parts.scaler.scale(parts.whole()).backward()
            update(parts)


@fine
def clipped_in_vain_and_then_well(parts: Parts) -> None:
    for _ in range(STEPS):
        clip_grad_norm_(parts.both.parameters(), 0.5)
        parts.whole().backward()
        clip_grad_norm_(parts.both.parameters(), 0.5)
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def measured_before_backward(parts: Parts) -> None:
    for _ in range(STEPS):
        clip_grad_norm_(parts.both.parameters(), float("inf"))
        parts.whole().backward()
        clip_grad_norm_(parts.both.parameters(), 0.5)
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def two_losses_clipped_one_by_one(parts: Parts) -> None:
    for _ in range(STEPS):
        for i, model in enumerate(parts.models):
            parts.loss(i).backward()
            clip_grad_norm_(model.parameters(), 0.5)
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def gradients_kept_for_one_step(parts: Parts) -> None:
    for step in range(STEPS):
        parts.whole().backward()
        parts.optimizer.step()
        if step % 2:
            parts.optimizer.zero_grad()


@fine
def gradients_written_by_hand(parts: Parts) -> None:
    parameters = list(parts.both.parameters())
    for _ in range(STEPS):
        for p, g in zip(parameters, torch.autograd.grad(parts.whole(), parameters), strict=True):
            p.grad = g
        parts.optimizer.step()


@fine
def a_part_frozen_with_its_last_gradient(parts: Parts) -> None:
    for step in range(2 * STEPS):
        if step == STEPS:
            parts.models[0].requires_grad_(False)
        parts.whole().backward()
        parts.optimizer.step()
        parts.models[1].zero_grad()
        if step < STEPS:
            parts.models[0].zero_grad()


@fine
def two_tasks_with_parameters_of_their_own(parts: Parts) -> None:
    for _ in range(STEPS):
        for i in range(2):
            parts.loss(i).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def losses_divided_by_their_tokens(parts: Parts) -> None:
    for _ in range(STEPS):
        for _ in range(3):
            (parts.whole() / torch.tensor(17.0)).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def gradients_divided_by_hand(parts: Parts) -> None:
    for _ in range(STEPS):
        for _ in range(3):
            parts.whole().backward()
        for p in parts.both.parameters():
            p.grad /= 3
        clip_grad_norm_(parts.both.parameters(), 0.5)
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def more_micro_batches_from_here_on(parts: Parts) -> None:
    for step in range(20):
        n = 2 if step < 10 else 3
        for _ in range(n):
            (parts.whole() / n).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()


@fine
def another_loss_now_and_then(parts: Parts) -> None:
    for step in range(20):
        for _ in range(2):
            (parts.whole() / 2).backward()
        if step == 12:
            parts.models[0].weight.square().sum().backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
