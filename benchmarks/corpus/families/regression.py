"""A small multilayer perceptron that fits a function: from all points at once, or from minibatches with noisy targets.

Options: `batch` (0: all 128 points of a sine, where Adam's spikes come by themselves; else that many examples a step of eight
noisy inputs). Disturbances: "noise" draws random targets, "shift" multiplies the targets by `size`, "hard" adds `size` of a
faster wave to the target, "labels" draws a share of the targets anew, "rare" multiplies the inputs by `size`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.corpus.families.draws import HELD_OUT, draws, random_share
from benchmarks.corpus.recipe import Recipe

__all__ = ["Regression"]

NOISE = 0.3
"""Standard deviation of the targets of minibatches."""


class Regression:
    """Mean squared error."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.size = int(recipe.options.get("batch", 0))
        self.inputs = 8 if self.size else 1
        generator = torch.Generator().manual_seed(3)
        self.directions = torch.randn(self.inputs, 4, generator=generator) / self.inputs**0.5

    def model(self) -> nn.Module:
        """Two hidden layers."""
        activation = nn.ReLU if self.size else nn.Tanh
        return nn.Sequential(
            nn.Linear(self.inputs, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 1)
        )  # fmt: skip

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [n, 1 or 8] and targets [n, 1]."""
        generator = draws(self.recipe, step)
        x = torch.randn(self.size, 8, generator=generator) if self.size else torch.linspace(-1, 1, 128)[:, None]
        y = self._target(x, step)
        if self.size:
            y = y + NOISE * torch.randn(y.shape, generator=generator)
        if noise := self.recipe.now("noise", step):
            y = noise.size * torch.randn(y.shape, generator=generator)
        if share := random_share(self.recipe, step):
            chosen = torch.rand(y.shape, generator=generator) < share
            y = torch.where(chosen, torch.randn(y.shape, generator=generator), y)
        if rare := self.recipe.now("rare", step):
            x = x * rare.size
        return x, y

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Mean squared error."""
        out = model(batch[0].to(next(model.parameters()).dtype)).float()
        return F.mse_loss(out, batch[1])

    def held_out(self, model: nn.Module) -> float:
        """Mean squared error expected on 512 other points, with the noise of targets that no model can foretell."""
        generator = torch.Generator().manual_seed(HELD_OUT)
        x = torch.randn(512, 8, generator=generator) if self.size else torch.linspace(-0.99, 0.99, 200)[:, None]
        return F.mse_loss(model(x).float(), self._target(x, self.recipe.steps)).item() + (NOISE**2 if self.size else 0.0)

    def _target(self, x: torch.Tensor, step: int) -> torch.Tensor:
        if not self.size:
            y = torch.sin(6 * x)
        else:
            y = torch.sin(x @ self.directions).sum(1, keepdim=True)
        if hard := self.recipe.now("hard", step):
            y = y + hard.size * torch.sin(3 * x[:, :1])
        shift = self.recipe.now("shift", step)
        return shift.size * y if shift else y
