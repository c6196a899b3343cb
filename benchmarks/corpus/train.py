"""The one training loop of the corpus: every fault is a setting of it, and nothing in it knows of labels."""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stabkit
from benchmarks.corpus.families import FAMILIES, Batch, Task
from benchmarks.corpus.recipe import Recipe

__all__ = ["Outcome", "train"]

AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        losses: The training loss of each step.
        final_loss: The loss on held-out examples, in float32; NaN or infinite where the model is broken.
        seconds: How long it took.
    """

    losses: tuple[float, ...]
    final_loss: float
    seconds: float


def train(recipe: Recipe, folder: Path, forward: bool = False) -> Outcome:
    """Train as the recipe says, recorded into `folder`.

    Args:
        recipe: What to train.
        folder: Where to record it.
        forward: Record the sizes of logits too; the training is the same bit for bit.

    Returns:
        What became of it.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    task = FAMILIES[recipe.family](recipe)
    model = task.model()
    _enlarge(model, recipe)
    if recipe.precision == "bfloat16-weights":
        model.to(torch.bfloat16)
    optimizer, scaler = _optimizer(model, recipe), _scaler(recipe)
    borders = [0, recipe.resume, recipe.steps] if recipe.resume else [0, recipe.steps]
    losses: list[float] = []
    for first, last in itertools.pairwise(borders):
        if first:
            model, optimizer = _resumed(model, optimizer, recipe)
        watched = stabkit.watch(
            model, optimizer, folder, tensorboard=False, total_steps=recipe.steps, first_step=first + 1 if first else None,
            forward=forward,
        )  # fmt: skip
        with watched:
            for step in range(first + 1, last + 1):
                losses.append(_step(step, recipe, task, model, optimizer, scaler))
    model.float().eval()
    with torch.no_grad():
        final = task.held_out(model)
    return Outcome(tuple(losses), final, time.perf_counter() - started)


def _step(
    step: int, recipe: Recipe, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any | None
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    loss = _loss(step, recipe, task, model, task.batch(step))
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
    else:
        scaler.scale(loss).backward()
        if recipe.unscale:
            scaler.unscale_(optimizer)
    if disturbed := recipe.now("gradient", step):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(disturbed.size)
    if recipe.clip:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return loss.item()


def _loss(step: int, recipe: Recipe, task: Task, model: nn.Module, batch: Batch) -> torch.Tensor:
    dtype = AUTOCAST.get(recipe.precision)
    with torch.autocast("cpu", dtype=dtype) if dtype else nullcontext():
        loss = task.loss(model, batch)
    if disturbed := recipe.now("loss", step):
        loss = loss * disturbed.size
    if recipe.now("nan", step):  # as from the norm of a vector of zeros: finite itself, its gradient 0 / 0
        weight = next(p for p in model.parameters() if p.dim() > 1)
        loss = loss + torch.sqrt((weight - weight.detach()).square().sum())
    return loss


def _enlarge(model: nn.Module, recipe: Recipe) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            factor = recipe.init_factor.get(name, recipe.init_factor.get("", 1.0) if parameter.dim() > 1 else 1.0)
            if factor != 1:
                parameter.mul_(factor)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    own = {decay: [p for n, p in model.named_parameters() if recipe.decay.get(n) == decay] for decay in recipe.decay.values()}
    taken = {id(p) for group in own.values() for p in group}
    rest: Iterator[nn.Parameter] = (p for p in model.parameters() if id(p) not in taken)
    groups: list[dict[str, Any]] = [{"params": list(rest), "weight_decay": recipe.weight_decay}]
    groups += [{"params": group, "weight_decay": decay} for decay, group in own.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.optim.AdamW(groups, lr=recipe.rate(1), betas=(0.9, recipe.beta2), eps=recipe.eps)


def _scaler(recipe: Recipe) -> Any | None:
    if recipe.precision != "float16":
        return None
    return torch.amp.GradScaler("cpu", init_scale=recipe.init_scale, growth_interval=recipe.growth_interval)


def _resumed(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A new model and optimizer from what a checkpoint holds."""
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    fresh = FAMILIES[recipe.family](recipe).model()
    fresh.load_state_dict(weights)
    again = _optimizer(fresh, recipe)
    if recipe.keep_moments:
        again.load_state_dict(state)
    return fresh, again
