"""Mistakes in parameters, decay and the optimizer's state (SK416 to SK421, SK105, SK306)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from tests.cases.wiring import Training, WiringCase
from tests.cases.wiring.loop import IMPLEMENTATIONS

__all__ = ["CASES", "HandWrittenAdam", "Model", "adamw", "train"]


class Model(nn.Module):
    """Two layers with a norm between them, and one more that `forward` may leave out."""

    def __init__(self, spare: bool = False) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        if spare:
            self.spare = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 8] to [batch, 4]."""
        outputs: torch.Tensor = self.outer(torch.tanh(self.norm(self.inner(x))))
        return outputs


class HandWrittenAdam(torch.optim.Optimizer):
    """Adam as people write it, with the mistakes people make.

    Args:
        params: As of any optimizer.
        lr: The rate.
        betas: As of Adam.
        counts: Whether it counts its steps.
        corrects: Whether it corrects the moments for their start at 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        counts: bool = True,
        corrects: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0})
        self.counts, self.corrects = counts, corrects

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0 if self.counts else 1, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["step"] += int(self.counts)
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].lerp_(p.grad.square(), 1 - beta2)
                m, v = state["m"], state["v"]
                if self.corrects:
                    m, v = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
                p -= group["lr"] * m / (v.sqrt() + group["eps"])


def train(model: nn.Module, optimizer: Any, logdir: Path, steps: int = 8, **options: Any) -> stabkit.RunLog:
    """A correct loop."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    with stabkit.watch(model, optimizer, logdir, **{"tensorboard": False, **options}):
        for _ in range(steps):
            x, y = (torch.randn(16, width, generator=generator).to(dtype) for width in (8, 4))
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return stabkit.load(logdir)


def adamw(of: Callable[[Model], Any], *, spare: bool = False, steps: int = 8, **options: Any) -> Training:
    """Training by AdamW of what `of` makes of a model: parameters or groups."""

    def training(implementation: str, logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = Model(spare)
        optimizer = torch.optim.AdamW(of(model), **{"lr": 1e-3, **IMPLEMENTATIONS[implementation], **options})
        return train(model, optimizer, logdir, steps)

    return training


def everything(model: Model) -> Any:
    """All parameters."""
    return model.parameters()


def decay_groups(model: Model) -> Any:
    """Decay for matrices only."""
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 1.0},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def by_hand(**options: Any) -> Training:
    """Training by an optimizer written by hand: the implementation makes no difference."""

    def training(implementation: str, logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = Model()
        return train(model, HandWrittenAdam(model.parameters(), **options), logdir, exact_updates=True)

    return training


def adam(**options: Any) -> Training:
    """Training by Adam, not AdamW."""

    def training(implementation: str, logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = Model()
        return train(model, torch.optim.Adam(model.parameters(), **IMPLEMENTATIONS[implementation], **options), logdir)

    return training


def sixteen_bits(lr: float) -> Training:
    """Training of bfloat16 weights by AdamW."""

    def training(implementation: str, logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = Model().to(torch.bfloat16)
        options = IMPLEMENTATIONS[implementation]
        return train(model, torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, **options), logdir, steps=24)

    return training


def resumed(loads_optimizer: bool, steps: int = 20) -> Training:
    """Two processes' worth of training: the second loads the model and, if it is right, the optimizer."""

    def training(implementation: str, logdir: Path) -> stabkit.RunLog:
        saved: list[Any] = []
        for _ in range(2):
            torch.manual_seed(0)
            model = Model()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **IMPLEMENTATIONS[implementation])
            parts = [model, optimizer]
            for part, state in zip(parts if loads_optimizer else parts[:1], saved, strict=False):
                part.load_state_dict(state)
            train(model, optimizer, logdir, steps)
            saved = copy.deepcopy([part.state_dict() for part in parts])
        return stabkit.load(logdir)

    return training


def again(implementation: str, logdir: Path) -> stabkit.RunLog:
    """The same run twice from the same seed, into the same directory: what a resume must not be taken for."""
    for _ in range(2):
        run = adamw(everything, steps=20)(implementation, logdir)
    return run


CASES: dict[str, WiringCase] = {
    "an Adam without bias correction": WiringCase(
        rule="SK105", first_step=1, sick=by_hand(corrects=False, lr=1e-4), healthy=by_hand(corrects=True, lr=1e-4)
    ),
    "a rate too low for bfloat16": WiringCase(rule="SK306", first_step=4, sick=sixteen_bits(1e-5), healthy=sixteen_bits(1e-2)),
    "the optimizer's state not loaded": WiringCase(
        rule="SK421", first_step=1, sick=resumed(loads_optimizer=False), healthy=again
    ),
    "a layer that the optimizer does not hold": WiringCase(
        rule="SK416", first_step=20, tensor="outer.weight", healthy=adamw(everything, steps=24),
        sick=adamw(lambda model: [*model.inner.parameters(), *model.norm.parameters()], steps=24),
    ),
    "a layer that the loss does not depend on": WiringCase(
        rule="SK417", first_step=20, tensor="spare.weight", sick=adamw(everything, spare=True, steps=24),
        healthy=adamw(everything, steps=24),
    ),
    "a count that stands still": WiringCase(
        rule="SK418", first_step=6, sick=by_hand(counts=False), healthy=by_hand(counts=True)
    ),
    "Adam with weight decay": WiringCase(
        rule="SK419", first_step=1, sick=adam(weight_decay=0.01), healthy=adam(weight_decay=0.0)
    ),
    "decay on everything": WiringCase(
        rule="SK420", first_step=100, tensor="inner.bias", sick=adamw(everything, weight_decay=1.0, steps=101),
        healthy=adamw(decay_groups, steps=101),
    ),
}  # fmt: skip
