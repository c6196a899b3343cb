"""Which of several processes a number of the whole run comes from: under data parallelism each has data of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabkit.runlog import RunLog

__all__ = ["OwnLoss", "broken_rank", "rank_that_rose"]

SHARE = 0.15
"""A rank rose alone where the others rose on average less than this share as much, in logarithms of positive losses,"""
NEGLIGIBLE = 0.01
"""or less than this share of it in the losses themselves."""
WINDOW = 30
LEAST = 5


@dataclass(frozen=True)
class OwnLoss:
    """The loss of one rank at a step, where it alone is to blame.

    Attributes:
        rank: Such as "rank 1".
        loss: Its loss.
        level: The median of its losses over the steps before.
    """

    rank: str
    loss: float
    level: float


def rank_that_rose(run: RunLog, step: int) -> OwnLoss | None:
    """The one rank that lifted the mean loss at a step, each compared with its own past; None where others rose too."""
    losses = _losses(run, step)
    if len(losses) < 2 or not all(np.isfinite([one.loss, one.level]).all() for one in losses):
        return None
    now, before = np.array([one.loss for one in losses]), np.array([one.level for one in losses])
    worst = int(np.argmax(now - before))
    others = np.delete(now - before, worst)
    alone = np.mean(others) < NEGLIGIBLE * (now - before)[worst]
    if min(now.min(), before.min()) > 0:  # losses of batches vary by factors
        factors = np.log(now / before)
        alone = alone or np.mean(np.delete(factors, worst)) < SHARE * factors[worst]
    return losses[worst] if alone else None


def broken_rank(run: RunLog, step: int) -> OwnLoss | None:
    """The one rank whose loss was not finite at a step; None where there were several, or all."""
    losses = _losses(run, step)
    broken = [one for one in losses if not np.isfinite(one.loss)]
    return broken[0] if len(broken) == 1 < len(losses) else None


def _losses(run: RunLog, step: int) -> list[OwnLoss]:
    """The losses that the ranks saw at a step."""
    found = []
    for rank, streams in run.ranks.items():
        stream = streams[run.index] if run.index < len(streams) else None
        row = int(np.searchsorted(stream.steps, step)) if stream is not None else 0
        if stream is None or row == len(stream.steps) or stream.steps[row] != step or "loss" not in stream.step_values:
            continue
        values = stream.step_values["loss"]
        if "loss_reduction" not in stream.step_values or stream.step_values["loss_reduction"][row] > 0:
            past = values[max(0, row - WINDOW) : row]
            past = past[np.isfinite(past)]
            level = float(np.median(past)) if len(past) >= LEAST else float("nan")
            found.append(OwnLoss(f"rank {rank}", float(values[row]), level))
    return found
