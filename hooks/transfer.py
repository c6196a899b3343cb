"""Brings the numbers of a step to the host in one go."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["to_host"]


def to_host(scalars: Sequence[torch.Tensor]) -> list[float]:
    """The values of 0-d float64 tensors on one device, in one transfer."""
    if all(scalar.is_cpu for scalar in scalars):
        return [scalar.item() for scalar in scalars]
    return [float(value) for value in torch.stack(list(scalars)).tolist()]
