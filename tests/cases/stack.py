"""A stack of sigmoids, the model whose gradients are known to vanish, with or without residual connections."""

from __future__ import annotations

import torch
from torch import nn


class Stack(nn.Module):
    """Predicts the next byte from the one before, through ten layers.

    Args:
        residual: Add what goes into a layer to what comes out of it.
    """

    def __init__(self, residual: bool, width: int = 32, depth: int = 10) -> None:
        super().__init__()
        self.residual = residual
        self.embed = nn.Embedding(256, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, length, 256] of tokens [batch, length]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = torch.sigmoid(layer(x)) + (x if self.residual else 0)
        return self.head(x)
