"""Finds the step that each batch was for, from when the user named it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stabkit.runlog.stream import Stream

__all__ = ["batches_of", "joined_batches"]


def batches_of(stream: Stream, lines: Sequence[Mapping[str, Any]], first: bool) -> dict[int, tuple[str, ...]]:
    """The batches of each step of a stream, in the order they were named.

    A batch named before its step belongs to the next one that ended, another to the last. Where the step's record is lost, so
    is what its batches were: they are not given to its neighbour.

    Args:
        stream: The records of one optimizer.
        lines: Those of scalars.jsonl.
        first: Whether it is the first optimizer, whose steps the lines count.
    """
    times = stream.step_values.get("time")
    if times is None or not len(stream.steps):
        return {}
    ends = np.fmax.accumulate(times)
    found: dict[int, dict[str, None]] = {}
    for line in lines:
        values, when, counted, ahead = line.get("values"), line.get("time"), line.get("step"), line.get("ahead") is True
        if not isinstance(values, dict) or "batch" not in values or not isinstance(when, (int, float)):
            continue
        row = int(np.searchsorted(ends, when, "right")) - (not ahead)
        if not 0 <= row < len(ends):
            continue
        step = int(stream.steps[row])
        if first and isinstance(counted, int) and counted and step != counted + ahead:
            continue
        found.setdefault(step, {})[str(values["batch"])] = None
    return {step: tuple(names) for step, names in found.items()}


def joined_batches(parts: Sequence[Stream]) -> dict[int, tuple[str, ...]]:
    """The batches of each step over all ranks, the lowest first."""
    steps = sorted({step for part in parts for step in part.batches})
    return {step: tuple(dict.fromkeys(name for part in parts for name in part.batches.get(step, ()))) for step in steps}
