"""Reads the hyperparameters a step used, whoever set them, and sees torch's schedulers step.

A scheduler written by hand is not seen stepping; the rates it sets are recorded like any others.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.optim import lr_scheduler

from stabkit.hooks.dispatch import Nesting, Undo, all_or_none, listening, notify, patch_attribute
from stabkit.hooks.transfer import host_number
from stabkit.runlog import Group

__all__ = ["attached", "group_of", "install", "number"]

_stepping = Nesting()  # SequentialLR steps the scheduler whose turn it is
_constructing = Nesting()  # the constructor of a scheduler steps it once, to set the first rate


def install() -> list[Undo]:
    """Patch every scheduler class that has a `step` of its own: event "scheduler_step" (scheduler), before it steps."""
    classes = [c for c in vars(lr_scheduler).values() if isinstance(c, type) and "step" in vars(c)]
    undo = [patch_attribute(owner, "step", _wrap_step) for owner in classes if owner.__module__ == lr_scheduler.__name__]
    # Without the second the constructor's own step would count as one of the loop.
    return all_or_none([*undo, patch_attribute(lr_scheduler.LRScheduler, "_initial_step", _wrap_initial)])


def _wrap_step(original: Any) -> Any:
    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not listening():
            return original(self, *args, **kwargs)
        with _stepping as outermost:
            if outermost and not _constructing.entered:
                notify("scheduler_step", self)
            return original(self, *args, **kwargs)

    return step


def _wrap_initial(original: Any) -> Any:
    @functools.wraps(original)
    def initial_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _constructing:
            return original(self, *args, **kwargs)

    return initial_step


def attached(optimizer: Any) -> bool:
    """Whether a scheduler of torch was made for this optimizer: it leaves a mark on `optimizer.step`."""
    step = getattr(optimizer, "step", None)
    return hasattr(step, "_wrapped_by_lr_sched") or hasattr(step, "_with_counter")  # the latter before torch 2.5


def group_of(group: dict[str, Any]) -> Group:
    """The hyperparameters of a `param_groups` entry; NaN for what the optimizer has not, or keeps on a device."""
    betas = group.get("betas", ())
    pair = betas if isinstance(betas, (tuple, list)) and len(betas) == 2 else (group.get("beta1"), group.get("beta2"))
    beta1, beta2 = (number(beta) for beta in pair)
    return Group(number(group.get("lr")), number(group.get("weight_decay")), beta1, beta2, number(group.get("eps")))


def number(value: Any) -> float:
    """A Python number, or that of a tensor on the CPU; NaN for anything else: reading a device would make training wait."""
    if isinstance(value, torch.Tensor):
        return host_number(value)
    return float(value) if isinstance(value, (int, float)) else math.nan
