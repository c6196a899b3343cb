"""Records without a training."""

from __future__ import annotations

from typing import Any

import numpy as np

from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Group, Layout, StepRecord, TensorInfo


def layout_of(*names: str, groups: int = 1, **about: Any) -> Layout:
    """A layout of tensors with two elements each."""
    return Layout(tuple(TensorInfo(name, (2,)) for name in names), groups, "AdamW", **about)


def record(step: int, attempt: int = 0, layout: int = 0, tensors: int | None = 2, groups: int = 1, **about: Any) -> StepRecord:
    """A record whose numbers depend on the step: loss 100 - step; tensor i holds step + i / 10 in every column."""
    columns = None
    if tensors is not None:
        columns = np.repeat(step + np.arange(tensors)[:, None] / 10, len(TENSOR_COLUMNS), axis=1)
    group = tuple(Group(lr=1e-3 * (i + 1)) for i in range(groups))
    about = {"loss": 100.0 - step, "loss_reduction": 1, "time": 1e9 + step + 1000 * attempt} | about
    return StepRecord(step, attempt, layout, groups=group, tensors=columns, **about)
