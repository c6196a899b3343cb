"""A small decoder-only transformer on the bytes of the standard library's source.

Options: `width`, `batch`, `qk_norm`, `z_loss`. Disturbances: "noise" draws random bytes; "shift" permutes the bytes; "rare"
flips the highest bit: bytes hardly ever met; "hard" starts from short sequences before its first step.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.corpus.families.draws import HELD_OUT, draws, with_random_labels
from benchmarks.corpus.families.layers import Block, initialise
from benchmarks.corpus.recipe import Recipe
from stabkit.demo import standard_library_text

__all__ = ["CONTEXT", "Text", "windows"]

CONTEXT = 32
SHORT = 8
"""Bytes of a sequence before a curriculum lengthens it."""


class Text:
    """Next-byte prediction."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.permutation = torch.randperm(256, generator=torch.Generator().manual_seed(7))

    def model(self) -> nn.Module:
        """About 50,000 parameters at width 32."""
        options = self.recipe.options
        return GPT(int(options.get("width", 32)), bool(options.get("qk_norm", 0)))

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each int64 [batch, time]."""
        recipe, generator = self.recipe, draws(self.recipe, step)
        window = windows(int(recipe.options.get("batch", 8)), generator)
        if recipe.now("noise", step):
            window = torch.randint(256, window.shape, generator=generator)
        window = self._shifted(window, step)
        if recipe.now("rare", step):
            window = window ^ 128
        if any(d.kind == "hard" and step < d.first for d in recipe.disturbances):
            window = window[:, : SHORT + 1]
        return window[:, :-1], with_random_labels(window[:, 1:], 256, recipe, step)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross entropy in nats per byte, with the z-loss that was asked for."""
        inputs, targets = batch
        logits = model(inputs).flatten(0, 1).float()
        loss = F.cross_entropy(logits, targets.flatten())
        if z := self.recipe.options.get("z_loss", 0.0):
            loss = loss + z * logits.logsumexp(-1).square().mean()
        return loss

    def held_out(self, model: nn.Module) -> float:
        """Mean loss of 64 sequences of the last step's distribution."""
        window = self._shifted(windows(64, torch.Generator().manual_seed(HELD_OUT)), self.recipe.steps)
        return F.cross_entropy(model(window[:, :-1]).flatten(0, 1).float(), window[:, 1:].flatten()).item()

    def _shifted(self, window: torch.Tensor, step: int) -> torch.Tensor:
        return self.permutation[window] if self.recipe.now("shift", step) else window


@cache
def _text() -> torch.Tensor:
    return standard_library_text(1_000_000)


def windows(count: int, generator: torch.Generator) -> torch.Tensor:
    """Stretches of the text at random places, int64 [count, CONTEXT + 1]."""
    text = _text()
    starts = torch.randint(len(text) - CONTEXT - 1, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(CONTEXT + 1)].long()


class GPT(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self, width: int, qk_norm: bool) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, 2, True, qk_norm) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        initialise(self)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, time] -> logits [batch, time, 256]."""
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits
