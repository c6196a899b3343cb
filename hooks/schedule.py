"""Reads the hyperparameters a step used, whoever set them: a scheduler of torch or a line of the user's own."""

from __future__ import annotations

import math
from typing import Any

import torch

from stabkit.runlog import Group

__all__ = ["group_of", "number"]


def group_of(group: dict[str, Any]) -> Group:
    """The hyperparameters of a `param_groups` entry; NaN for what the optimizer has not, or keeps on a device."""
    betas = group.get("betas", ())
    pair = betas if isinstance(betas, (tuple, list)) and len(betas) == 2 else (group.get("beta1"), group.get("beta2"))
    beta1, beta2 = (number(beta) for beta in pair)
    return Group(number(group.get("lr")), number(group.get("weight_decay")), beta1, beta2, number(group.get("eps")))


def number(value: Any) -> float:
    """A Python number, or that of a tensor on the CPU; NaN for anything else: reading a device would make training wait."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.is_cpu and value.numel() == 1 else math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan
