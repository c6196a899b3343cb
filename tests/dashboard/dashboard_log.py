"""Makes records, and reads event files back with TensorBoard's own readers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing import event_accumulator, event_file_loader

from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Layout, StepRecord, TensorInfo
from stabkit.runlog.record import Group

PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
LAYOUT = Layout((TensorInfo("wte.weight", (3, 2)), TensorInfo("head.weight", (2, 2)), TensorInfo("head.bias", (2,))))
NAN = math.nan


def columns(**values: list[float]) -> Array:
    """The columns of LAYOUT's three tensors, NaN but for those given."""
    table = np.full((3, len(TENSOR_COLUMNS)), NAN)
    for name, column in values.items():
        table[:, PLACE[name]] = column
    return table


def measured(**values: list[float]) -> Array:
    """Columns of an ordinary step."""
    return columns(**{
        "grad_sumsq": [4, 9, 16], "grad_used_sumsq": [1, 2.25, 4], "rms_sum": [6, 1, 0.5],
        "update_sumsq": [0.01, 0.03, 0.01], "weight_sumsq": [1, 3, 1],
        "grad_nonfinite": [0, 0, 0], "weight_nonfinite": [0, 0, 0],
    } | values)  # fmt: skip


def record(step: int = 1, **fields: Any) -> StepRecord:
    """A step with one group and a loss."""
    plain = {"time": 1e9 + step, "loss": 2.5, "loss_reduction": 1, "backward_count": 1, "groups": (Group(lr=0.125),)}
    return StepRecord(step, 0, 0, **(plain | fields))


def raw_events(directory: Path) -> list[Any]:
    """Every event of the one file in the directory, as TensorBoard reads them."""
    (path,) = directory.glob("events.out.tfevents.*")
    return list(event_file_loader.RawEventFileLoader(str(path)).Load())


def decoded(directory: Path) -> list[Any]:
    (path,) = directory.glob("events.out.tfevents.*")
    return list(event_file_loader.LegacyEventFileLoader(str(path)).Load())


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> [(step, value)], by TensorBoard's accumulator over every file in the directory."""
    accumulator = event_accumulator.EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def last(directory: Path) -> dict[str, float]:
    return {tag: points[-1][1] for tag, points in scalars(directory).items()}
