"""`stabkit demo`: trains a small real model twice, with and without a warmup, and analyses both. Uses the public API only.

The model is a byte-level GPT of about 3 million parameters; the text is the source of Python's own standard library.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

import stabkit

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["GPT", "HEALTHY", "NO_WARMUP", "Recipe", "batches", "demo", "standard_library_text", "train"]

CONTEXT = 64


@dataclass(frozen=True)
class Recipe:
    """How to train the demo model.

    Attributes:
        lr: Peak learning rate.
        warmup: Steps of linear warmup; 0 starts at the peak.
        steps: Optimizer steps in all; after the warmup the rate falls to a tenth along a cosine.
        beta2: Decay of Adam's second moment.
        clip: Largest gradient norm.
        batch: Sequences a step.
        seed: Of initialisation and data order.
    """

    lr: float = 1e-3
    warmup: int = 20
    steps: int = 200
    beta2: float = 0.999
    clip: float = 1.0
    batch: int = 16
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


HEALTHY = Recipe()
NO_WARMUP = Recipe(lr=3e-2, warmup=0)
"""At this rate the first step changes every matrix by one and a half times its size (the rate over the init's 0.02)."""


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] -> the same."""
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        out: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class GPT(nn.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, time] -> logits [batch, time, 256]."""
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def standard_library_text(limit: int = 4_000_000) -> torch.Tensor:
    """The first `limit` bytes of the standard library's source, files in alphabetical order, as uint8 [limit]."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def batches(text: torch.Tensor, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, targets), each int64 [batch, CONTEXT], drawn at random places of the text."""
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (recipe.batch,), generator=generator)
        window = torch.stack([text[s : s + CONTEXT + 1] for s in starts.tolist()]).long()
        yield window[:, :-1], window[:, 1:]


def demo(directory: Path, seed: int, steps: int, say: Callable[[str], None]) -> list[Path]:
    """Train the healthy run and the one without warmup, with a progress bar.

    Args:
        directory: Where to record; each run gets a directory of its own inside.
        seed: Of both runs.
        steps: Steps of each.
        say: Told the loss each run came to.

    Returns:
        The runs' directories.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    runs = {"healthy": HEALTHY, "no-warmup": NO_WARMUP}
    loss_column = TextColumn("loss {task.fields[loss]:.2f}")
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), loss_column, TimeRemainingColumn())
    paths = []
    for name, recipe in runs.items():
        recipe = replace(recipe, seed=seed, steps=steps)
        with Progress(*columns) as progress:
            final = train(recipe, directory / name, _shown_by(progress, progress.add_task(name, total=steps, loss=math.nan)))
        say(f"{name}: rate {recipe.lr:g}, warmup {recipe.warmup} steps, loss {final:.3f} in the last 20 of {steps} steps")
        paths.append(directory / name)
    return paths


def _shown_by(progress: Progress, task: TaskID) -> Callable[[int, float], None]:
    return lambda step, loss: progress.update(task, completed=step, loss=loss)


def train(recipe: Recipe, logdir: Path | None, on_step: Callable[[int, float], None] = lambda step, loss: None) -> float:
    """Train, and record into `logdir` unless it is None.

    Returns:
        The mean loss of the last 20 steps, in nats per byte.
    """
    torch.manual_seed(recipe.seed)
    model, data = GPT(), batches(standard_library_text(), recipe)
    matrices, others = ([p for p in model.parameters() if (p.dim() > 1) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True)
    losses = []

    def loop() -> None:
        for step in range(1, recipe.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            inputs, targets = next(data)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            losses.append(loss.item())
            on_step(step, losses[-1])

    if logdir is None:
        loop()
    else:
        with stabkit.watch(model, optimizer, logdir, total_steps=recipe.steps):
            loop()
    return sum(losses[-20:]) / len(losses[-20:])
