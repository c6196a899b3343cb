"""A small vision transformer, or a convolutional network, on scikit-learn's 8 x 8 digits.

Options: `cnn`, `batch`, `qk_norm`, `z_loss`. Disturbances: "noise" draws random pixels and labels; "shift" inverts the images
and multiplies their contrast by `size`; "hard" adds noise of `size` standard deviations; "rare" lights one pixel very brightly.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.corpus.families.draws import draws, with_random_labels
from benchmarks.corpus.families.layers import Block, initialise
from benchmarks.corpus.recipe import Recipe

__all__ = ["Vision"]

HELD_OUT = 297


class Vision:
    """Ten digits."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def model(self) -> nn.Module:
        """About 27,000 parameters, or 20,000 of the convolutional one."""
        options = self.recipe.options
        return CNN() if options.get("cnn") else ViT(bool(options.get("qk_norm", 0)))

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [batch, 1, 8, 8] and labels [batch]."""
        recipe, generator = self.recipe, draws(self.recipe, step)
        images, labels = _digits()
        count = len(images) - HELD_OUT
        size = int(recipe.options.get("batch", 32))
        if recipe.period and recipe.schedule != "restarts":  # sorted by label within an epoch: its borders show in the loss
            start = (step % recipe.period) * (count - size) // recipe.period
            chosen = torch.argsort(labels[:count], stable=True)[start : start + size]
            drawn = torch.randint(count, (size,), generator=generator)
            chosen = torch.where(torch.rand(size, generator=generator) < 0.3, chosen, drawn)
        else:
            chosen = torch.randint(count, (size,), generator=generator)
        x, y = images[chosen], labels[chosen]
        if recipe.now("noise", step):
            x, y = torch.randn(x.shape, generator=generator) * 3, torch.randint(10, y.shape, generator=generator)
        x = self._shifted(x, step)
        if hard := recipe.now("hard", step):
            x = x + hard.size * torch.randn(x.shape, generator=generator)
        if rare := recipe.now("rare", step):
            x = x.clone()
            x[:, :, 0, 0] = rare.size
        return x, with_random_labels(y, 10, recipe, step)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross entropy with smoothed labels, so that it has a floor, and with the z-loss that was asked for."""
        logits = model(batch[0].to(next(model.parameters()).dtype)).float()
        loss = F.cross_entropy(logits, batch[1], label_smoothing=0.1)
        if z := self.recipe.options.get("z_loss", 0.0):
            loss = loss + z * logits.logsumexp(-1).square().mean()
        return loss

    def held_out(self, model: nn.Module) -> float:
        """Mean loss of the images never trained on, labels smoothed: else a few sure mistakes would decide it."""
        images, labels = (each[-HELD_OUT:] for each in _digits())
        return F.cross_entropy(model(self._shifted(images, self.recipe.steps)).float(), labels, label_smoothing=0.1).item()

    def _shifted(self, x: torch.Tensor, step: int) -> torch.Tensor:
        shift = self.recipe.now("shift", step)
        return -shift.size * x if shift else x


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, standardised, in a fixed random order, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (torch.tensor(digits.images, dtype=torch.float32)[:, None] - 4.9) / 6.0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(digits.target)[order]


class ViT(nn.Module):
    """Sixteen patches of 2 x 2 pixels, two blocks, the mean, a head."""

    def __init__(self, qk_norm: bool, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(16, width))
        self.blocks = nn.ModuleList(Block(width, 2, False, qk_norm) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [batch, 1, 8, 8] -> logits [batch, 10]."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x).mean(1))
        return logits


class CNN(nn.Sequential):
    """Two convolutions with BatchNorm, a hidden layer, a head."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
