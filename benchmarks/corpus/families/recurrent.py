"""An LSTM on the bytes of the standard library's source. Kept for scoring: no threshold has seen it.

Disturbances as in the text family.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.corpus.families.text import Text

__all__ = ["Recurrent"]


class Recurrent(Text):
    """Next-byte prediction with a recurrent network."""

    def model(self) -> nn.Module:
        """About 66,000 parameters."""
        return LSTM(64)


class LSTM(nn.Module):
    """One layer of LSTM between an embedding and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.cells = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, time] -> logits [batch, time, 256]."""
        hidden, _ = self.cells(self.embed(tokens))
        logits: torch.Tensor = self.head(hidden)
        return logits
