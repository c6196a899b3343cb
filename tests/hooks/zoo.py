"""Small models that have everything a real one has, and shapes that hurt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS = 11


class Net(nn.Module):
    """Embedding, tied head, dropout, norm, a frozen layer, and a parameter that never gets a gradient."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.dropout(torch.tanh(self.hidden(self.embed(words)))) + self.frozen(self.embed(words)))
        return self.head(x)

    def loss(self) -> Tensor:
        """Of a fresh random batch."""
        words = torch.randint(0, WORDS, (6, 5))
        return functional.cross_entropy(self(words).float().flatten(0, 1), words.roll(1, 1).flatten())


class Zoo(nn.Module):
    """Parameters of every shape, each multiplied by random numbers: the gradient does not depend on the weights.

    Args:
        scale: Of the weights.
        gaps: Whether one parameter has gaps in memory; torch's fused CPU step goes wrong on those by itself.
    """

    def __init__(self, scale: float = 1.0, gaps: bool = True) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.randn(()) * scale)
        self.single = nn.Parameter(torch.randn(1) * scale)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.matrix = nn.Parameter(torch.randn(5, 7) * scale)
        self.transposed = nn.Parameter((torch.randn(6, 4) * scale).t())
        self.strided = nn.Parameter((torch.randn(10, 3) * scale)[:: 2 if gaps else 1])
        self.image = nn.Parameter((torch.randn(2, 3, 4, 5) * scale).to(memory_format=torch.channels_last))
        self.tied = self.matrix
        self.zeros = nn.Parameter(torch.zeros(4))
        self.frozen = nn.Parameter(torch.randn(4) * scale, requires_grad=False)
        self.lonely = nn.Parameter(torch.randn(4) * scale)

    def loss(self, factor: float = 1.0) -> Tensor:
        total = torch.zeros(())
        for name, p in self.named_parameters():
            if name not in ("frozen", "lonely"):
                total = total + (p * (torch.randn(p.shape) * factor)).sum()
        return total + (self.tied * factor).sum()
