"""Trains a small real model on the public API: healthy until its rate jumps. Some layers and the run have hostile names."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from long_log import HOSTILE, LONG
from torch import nn

import stabkit

__all__ = ["train"]


class Net(nn.Module):
    """Layers one after the other, then three small ones that add to what they get, so that there is a module to fold."""

    def __init__(self) -> None:
        super().__init__()
        for name, inside, outside in (("first", 8, 32), (HOSTILE, 32, 32), (LONG.replace(".", "_"), 32, 32), ("last", 32, 8)):
            self.add_module(name, nn.Linear(inside, outside))
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(3))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 8] -> [batch, 1]."""
        for layer in self.children():
            if isinstance(layer, nn.Linear) and layer is not self.head:
                x = torch.tanh(layer(x))
        for block in self.blocks:
            x = x + block(x)
        made: torch.Tensor = self.head(x)
        return made


def train(directory: Path, steps: int = 200, jump: int = 140, pause: float = 0.0) -> None:
    """Train with `stabkit.watch`, at three hundred times the rate for ten steps from `jump` on."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(8, 1, generator=generator)
    with stabkit.watch(net, optimizer, directory):
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = 0.3 if jump <= step < jump + 10 else 1e-3
            inputs = torch.randn(32, 8, generator=generator)
            loss = (net(inputs) - torch.tanh(inputs @ weights)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(pause)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), pause=float(sys.argv[3]))
