"""A Llama-style recipe under stabkit, from a million parameters on a laptop to a hundred million on a GPU.

    python examples/llama.py                                               # under a minute on two CPU cores
    python examples/llama.py --size 100m --device cuda --steps 2000 --batch 32 --accumulate 4
    stabkit analyze runs/llama

The model: RMSNorm before each part, rotary positions, SwiGLU, no biases. The training: AdamW with betas (0.9, 0.95), eps 1e-5
and a XX text is the source of Python's own standard library, byte by byte.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import stabkit

SIZES = {"1m": (128, 5, 4), "10m": (320, 8, 5), "100m": (768, 14, 12)}  # width, layers, heads
CONTEXT = 128


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn each pair of features [batch, heads, time, features] by an angle that grows with the position."""
    (a, b), (cos, sin) = x.chunk(2, dim=-1), rotation.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions: [batch, time, width] -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, rotation: torch.Tensor) -> Any:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The gated feed-forward part; 8/3 of the width makes it as large as one of 4 widths without a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = math.ceil(width * 8 / 3 / 32) * 32
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind an RMSNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width, eps=1e-5), Attention(width, heads)
        self.norm2, self.ffn = nn.RMSNorm(width, eps=1e-5), SwiGLU(width)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor) -> Any:
        x = x + self.attention(self.norm1(x), rotation)
        return x + self.ffn(self.norm2(x))


class Llama(nn.Module):
    """A decoder over bytes: [batch, time] -> logits [batch, time, 256]."""

    def __init__(self, width: int, layers: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, 256, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # what adds to the residual stream starts smaller, the more layers there are
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers if name.endswith(("out.weight", "down.weight")) else 1))
        nn.init.normal_(self.embed.weight, std=0.02 if tied else 1.0)  # RMSNorm divides by its size: small, large gradients
        if tied:
            self.head.weight = self.embed.weight
        angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** -(torch.arange(0, width // heads, 2) / (width // heads)))
        self.register_buffer("rotation", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.rotation)
        return self.head(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--size", choices=SIZES, default="1m", help="number of parameters, about")
    option("--device", type=torch.device, default="cpu", help="such as cuda")
    option("--precision", choices=["bf16", "fp32"], help="bf16 by default, on the CPU fp32")
    option("--steps", type=int, default=150)
    option("--batch", type=int, default=4, help=f"sequences of {CONTEXT} bytes per backward")
    option("--accumulate", type=int, default=1, help="backwards per step")
    option("--lr", type=float, default=1e-3, help="peak rate")
    option("--warmup", type=int, default=40, help="steps; 2 / (1 - beta2) is 40")
    option("--tied", action="store_true", help="let the head share the embedding")
    option("--logdir", type=Path, default=Path("runs/llama"))
    args = parser.parse_args()
    bf16 = args.precision == "bf16" or (args.precision is None and args.device.type != "cpu")
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)
    torch.manual_seed(0)
    model = Llama(*SIZES[args.size], args.tied).to(args.device)
    parameters = list(model.parameters())
    matrices, norms = [p for p in parameters if p.dim() == 2], [p for p in parameters if p.dim() == 1]
    optimizer = torch.optim.AdamW(matrices, lr=args.lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    optimizer.add_param_group({"params": norms, "weight_decay": 0.0})

    def rate(done: int) -> float:
        """The rate after so many steps, as a share of the peak."""
        progress = max(0.0, (done - args.warmup) / max(1, args.steps - args.warmup))
        return float(min(1.0, (done + 1) / max(1, args.warmup)) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    print(f"{sum(p.numel() for p in parameters):,} parameters, {len(text):,} bytes of text")
    with stabkit.watch(model, optimizer, args.logdir, total_steps=args.steps):
        for step in range(1, args.steps + 1):
            total = torch.zeros((), device=args.device)
            for _ in range(args.accumulate):
                places = torch.randint(len(text) - CONTEXT, (args.batch, 1)) + torch.arange(CONTEXT + 1)
                window = text[places].to(args.device).long()
                with torch.autocast(args.device.type, torch.bfloat16, enabled=bf16):
                    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()) / args.accumulate
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step == 1 or step % 20 == 0:
                print(f"step {step:5}   loss {total.item():.3f}   lr {schedule.get_last_lr()[0]:.2e}")
            schedule.step()


if __name__ == "__main__":
    main()
