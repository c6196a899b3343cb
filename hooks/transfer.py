"""Brings the numbers of a step to the host, where that costs no wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["to_host"]


def to_host(scalars: Sequence[torch.Tensor]) -> list[float]:
    """The values of 0-d float64 tensors; NaN for those on a device, where reading would make the training wait."""
    return [scalar.item() if scalar.is_cpu else float("nan") for scalar in scalars]
