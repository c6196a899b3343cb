"""The transformer block of the text and vision families, with what a remedy may ask for."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Block", "initialise"]


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm. Queries and keys can be normalised."""

    def __init__(self, width: int, heads: int, causal: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        head = width // heads
        self.query_norm: nn.Module = nn.LayerNorm(head) if qk_norm else nn.Identity()
        self.key_norm: nn.Module = nn.LayerNorm(head) if qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] -> the same."""
        b, t, c = x.shape
        normed = self.norm1(x)
        q, k, v = (
            linear(normed).view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        q, k = self.query_norm(q), self.key_norm(k)
        attended = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=self.causal)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        out: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


def initialise(model: nn.Module, std: float = 0.02) -> None:
    """Every matrix normal with a standard deviation."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
