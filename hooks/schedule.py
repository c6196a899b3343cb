"""Reads the hyperparameters a step used, whoever set them: a scheduler of torch or a line of the user's own."""

from __future__ import annotations

from typing import Any

import torch

from stabkit.runlog import Group

__all__ = ["group_of"]


def group_of(group: dict[str, Any]) -> Group:
    """The hyperparameters of a `param_groups` entry; NaN for what the optimizer has not, or keeps on a device."""
    betas = group.get("betas", ())
    beta1, beta2 = (_number(b) for b in betas) if len(betas) == 2 else (float("nan"), float("nan"))
    return Group(_number(group.get("lr")), _number(group.get("weight_decay")), beta1, beta2, _number(group.get("eps")))


def _number(value: Any) -> float:
    if isinstance(value, torch.Tensor):  # reading it on a device would make the training wait
        return float(value) if value.device.type == "cpu" and value.numel() == 1 else float("nan")
    return float(value) if isinstance(value, (int, float)) else float("nan")
