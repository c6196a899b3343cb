"""What the rules about the start of training share: which tensors can be judged by ratio, and how long a warmup should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.series import Flags, Indices, known_max
from stabkit.analyzers.sweep import swept
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows, in_blocks

__all__ = [
    "QUIET_RATIO",
    "SAFE_RATIO",
    "EarlyUpdates",
    "Warmup",
    "early_ratios",
    "early_updates",
    "judged_matrices",
    "planned_steps",
    "warmup_for",
]

SMALLEST_RMS = 1e-3
"""A matrix that starts below this (a zero-initialised projection) has no size that an update could be too large for."""

SAFE_RATIO = 0.05
"""Update-to-weight ratio of a first step that did no harm where 0.5 and 1.5 did (step 1 of Adam: lr / RMS(W))."""

QUIET_RATIO = 0.1
"""Update-to-weight ratio of a first step up to which nothing is said of it, without a warmup and all the more with one. With a
warmup to the rate of that ratio 7 of 7 small models trained as their healthy twins do; to that of 0.05, four of them had learnt
too little in the same time."""


class EarlyUpdates:
    """Update-to-weight ratios of the matrices that can be judged, over the steps from 1 on.

    Attributes:
        steps: int64 [n], the measured steps.
        largest: [n], the largest ratio of each; NaN where there is none.
    """

    metrics = ("update_ratio",)

    def __init__(self, run: RunLog) -> None:
        self._run, self._judged = run, judged_matrices(run)
        self._step0 = int(np.searchsorted(run.stream.tensor_steps, 1))
        self.steps: Indices = run.stream.tensor_steps[self._step0 :]
        self.largest: Array = np.full(len(self.steps), np.nan)

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        first = rows.begin - self._step0
        self.largest[max(first, 0) : first + len(rows)] = known_max(early_ratios(rows, self._judged), axis=1)[max(-first, 0) :]

    def order(self, row: int, limit: float) -> tuple[str, ...]:
        """The matrices above a limit in a row, the largest first."""
        at = row + self._step0
        values = early_ratios(Rows(self._run, at, at + 1), self._judged)[0]
        above = [i for i in np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable").tolist() if values[i] > limit]
        return tuple(self._run.tensors[i].name for i in above)


def early_updates(run: RunLog) -> EarlyUpdates:
    """Update-to-weight ratios of matrices and embeddings that do not start at (almost) zero."""
    return swept(run, EarlyUpdates)


def early_ratios(rows: Rows, judged: Flags) -> Array:
    """Update-to-weight ratios [rows, tensors], NaN of tensors that are not judged."""

    def ratios(rows: Rows) -> Array:
        values = rows.table("update_ratio")
        return np.where(judged & np.isfinite(values), values, np.nan)

    return rows.once("early_ratios", ratios)


def judged_matrices(run: RunLog) -> Flags:
    """Of each tensor, whether it is a matrix or an embedding that does not start at (almost) zero.

    Causal all the same: a tensor has no ratio before its first weight norm.
    """
    if judged_matrices not in run.memo:
        numel = np.array([max(t.numel, 1) for t in run.tensors])
        judged = np.array([t.role in ("matrix", "embedding") for t in run.tensors], dtype=bool)
        first = np.full(len(run.tensors), np.nan)
        for rows in in_blocks(run, ("weight_norm",)):
            weights = rows.table("weight_norm")
            known = np.isfinite(weights) & np.isnan(first)
            first = np.where(known.any(axis=0), weights[known.argmax(axis=0), np.arange(len(first))], first)
            if np.isfinite(first[judged]).all():
                break
        run.memo[judged_matrices] = judged & (np.nan_to_num(first) / np.sqrt(numel) >= SMALLEST_RMS)
    found: Flags = run.memo[judged_matrices]
    return found


def planned_steps(run: RunLog) -> int | None:
    """How many steps the run is meant to have, where the user said."""
    planned = run.facts.get("total_steps")
    return int(planned) if isinstance(planned, (int, float)) and planned > 0 else None


@dataclass(frozen=True)
class Warmup:
    """A computed remedy.

    Attributes:
        full: 2 / (1 - beta2) steps: when the second moment's estimate is as good as it gets [arXiv 1910.04209].
        steps: The warmup to use: `full`, or a tenth of the run where that is less.
        beta2: The beta2 whose full warmup is `steps`; None where `full` fits, or where it would be below 0.9.
        lr: The peak rate at which the first update would be QUIET_RATIO of the weights.
    """

    full: int
    steps: int
    beta2: float | None
    lr: float


def warmup_for(beta2: float, lr: float, ratio: float, planned: int | None) -> Warmup:
    """The warmup for a run of `planned` steps (None: unknown) whose early update-to-weight ratio was `ratio` at rate `lr`."""
    full = round(2 / (1 - beta2))
    safe = lr * min(1.0, QUIET_RATIO / ratio)
    if planned is None or full <= planned / 10:
        return Warmup(full, full, None, safe)
    steps = math.ceil(planned / 10)
    return Warmup(full, steps, 1 - 2 / steps if steps >= 20 else None, safe)
