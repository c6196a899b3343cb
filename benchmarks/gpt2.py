"""GPT-2's smallest size, by hand: 124 million parameters in 148 tensors, its tokens drawn at random. Nothing is downloaded."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stabkit.demo import GPT

__all__ = ["TOKENS", "Training", "gpt2"]

TOKENS, POSITIONS = 50_257, 1024


def gpt2() -> nn.Module:
    """The model, in float32 on the CPU; the output layer shares the token embedding."""
    model = GPT(768, 12, 12)
    model.embed, model.position = nn.Embedding(TOKENS, 768), nn.Embedding(POSITIONS, 768)
    for table in (model.embed, model.position):
        nn.init.normal_(table.weight, std=0.02)
    model.head.weight = model.embed.weight
    return model


class Training:
    """Steps of fused AdamW on a device, gradients clipped.

    Args:
        device: Where.
        weights: The dtype of parameters and moments; with float32 the forward pass runs under bfloat16 autocast.
        batch: Sequences of a step.
        length: Tokens of a sequence.
    """

    def __init__(self, device: torch.device, weights: torch.dtype, batch: int = 16, length: int = POSITIONS) -> None:
        torch.manual_seed(0)
        self.model = gpt2().to(device, weights)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=weights is torch.float32)
        self._tokens = torch.randint(TOKENS, (batch, length + 1), device=device)

    def step(self) -> None:
        """One of them."""
        self.optimizer.zero_grad()
        with self._autocast:
            logits = self.model(self._tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), self._tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
