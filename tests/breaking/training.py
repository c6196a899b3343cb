"""A training that makes use of everything stabkit looks at, and what must come out of it bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stabkit
from benchmarks.tables import Tables, tables
from stabkit.watch import StabkitWarning

__all__ = ["STEPS", "Outcome", "bits", "patchable", "train"]

STEPS = 8


class Outcome:
    """What a training left.

    Attributes:
        bits: Of weights, moments, scaler, scheduler and random numbers.
        warned: What stabkit said to the user.
    """

    def __init__(self, bits: Any, warned: list[str]) -> None:
        self.bits, self.warned = bits, warned


def train(
    logdir: Path | None = None,
    *,
    adopt: bool = False,
    scaled: bool = False,
    steps: int = STEPS,
    between: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> Outcome:
    """Train two groups for a few steps, accumulating, clipping, scheduled, zeroed in both ways; watched if there is a logdir.

    Args:
        logdir: Where to record; None trains unwatched.
        adopt: Leave it to stabkit to find the optimizer.
        scaled: In mixed precision with a scaler, one step overflowing.
        steps: How many.
        between: Called after each step.
        options: For `stabkit.watch`.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == matrices]} for matrices in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    data, target = torch.randn(6, 4), torch.randn(6, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watching = stabkit.watch(model, None if adopt else optimizer, logdir, **options) if logdir else nullcontext()
        with watching as watch:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
            for step in range(steps):
                for _ in range(2):
                    with torch.autocast("cpu", torch.bfloat16, enabled=scaled):
                        out = model(data + 0.1 * torch.randn(6, 4))
                        far = nn.functional.cross_entropy(out, target.argmax(1)) if scaled else (out - target).square().mean()
                        loss = far / 2
                    loss = loss * (torch.inf if scaled and step == 5 else 1.0)
                    scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                optimizer.zero_grad(set_to_none=step % 3 > 0)
                if watch is not None:
                    watch.log(val=float(step)), watch.mark(f"step {step}")
                between(step + 1)
    state = [model.state_dict(), optimizer.state_dict(), scaler.state_dict(), scheduler.state_dict(), torch.get_rng_state()]
    return Outcome(bits(state), [str(w.message) for w in caught if issubclass(w.category, StabkitWarning)])


def bits(value: Any) -> Any:
    """Something that compares equal only where every bit is the same."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {str(key): bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return repr(value)


def patchable() -> Tables:
    """What of torch could have been left changed, in the places where a tool for training would patch."""
    found: Tables = {}
    for package in ("torch.optim", "torch.autograd", "torch.amp", "torch.nn.utils.clip_grad", "torch.nn.modules.module"):
        found |= tables(package)
    return found
