"""Writes logs of any length and with any names, in the real format and by the real writer: a run that spikes once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Group, Layout, RunWriter, StepRecord, TensorInfo

__all__ = ["HOSTILE", "LONG", "transformer_names", "write_log"]

PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
HOSTILE = "<img src=x onerror=alert(1)>"
LONG = "layer." + "very_long_" * 499 + "end"
NUMEL = 64


def transformer_names(count: int) -> list[str]:
    """`count` names such as a transformer has them."""
    parts = ("norm1.weight", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "norm2.weight", "fc1.weight", "fc2.weight")
    blocks = [f"blocks.{block}.{part}" for block in range(count) for part in parts]
    return ["embed.weight", *blocks[: count - 2], "head.weight"]


def write_log(directory: Path, steps: int, names: Sequence[str], spike: int, first: int = 1) -> RunWriter:
    """Write steps of an ordinary run whose loss, gradients and updates are far too large at one of them.

    Args:
        directory: Where.
        steps: The last step.
        names: The tensors.
        spike: The step.
        first: The first step.

    Returns:
        The writer, not closed.
    """
    writer = RunWriter(directory, {"stabkit": "0.1.0"})
    infos = tuple(TensorInfo(name, (8, NUMEL // 8)) for name in names)
    number = writer.layout(0, Layout(infos, optimizer="AdamW", implementation="foreach"))
    writer.begin_attempt(0, first - 1)
    rng = np.random.default_rng(0)
    for step in range(first, steps + 1):
        writer.write(0, step_record(rng, step, number, len(names), 30.0 if step == spike else 1.0))
    return writer


def step_record(rng: np.random.Generator, step: int, layout: int, tensors: int, factor: float) -> StepRecord:
    """One step; `factor` is what loss, gradient and update are too large by."""
    noise: Array = 0.05 * rng.standard_normal((tensors, 4)) + 1
    table = np.full((tensors, len(TENSOR_COLUMNS)), np.nan)
    gradient = noise[:, 0] * factor
    columns = {
        "weight_sumsq": NUMEL * 0.01 * noise[:, 1] ** 0.1, "grad_used_sumsq": gradient**2, "grad_sumsq": gradient**2,
        "grad_absmax": gradient / 4, "rms_sum": NUMEL * (noise[:, 2] * factor) ** 2, "exp_avg_sq_sum": NUMEL * noise[:, 3],
        "update_sumsq": 1e-8 * (noise[:, 2] * factor) ** 2, "grad_nonfinite": 0, "weight_nonfinite": 0, "grad_zeros": 0,
        "weight_absmax": 0.1,
    }  # fmt: skip
    for name, values in columns.items():
        table[:, PLACE[name]] = values
    loss = (2 + 1 / (1 + step / 100)) * float(noise[0, 0]) * factor
    norm = float(np.sqrt(np.sum(gradient**2)))
    return StepRecord(
        step, 0, layout, time=1.7e9 + step, applied_steps=step, backward_count=1, loss_reduction=1, loss=loss, loss_sum=loss,
        grad_norm=norm, grad_norm_used=norm, weight_norm=0.8, update_norm=1e-4 * factor,
        groups=(Group(lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8),), tensors=table,
    )  # fmt: skip


if __name__ == "__main__":
    where, length, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    write_log(where, length, transformer_names(width), spike=length // 2).close()
