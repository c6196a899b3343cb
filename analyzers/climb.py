"""A series that climbs by factors from one record to the next: an event whatever its level was before.

Not at the beginning of a training, where everything finds its size: only where a log begins in the midst of one.
"""

from __future__ import annotations

import numpy as np

from stabkit.analyzers.series import Indices
from stabkit.metric import Array

__all__ = ["foot_of_climb", "in_the_midst"]

LEAST = 3
"""Records in a row that each lie"""
EACH = 1.5
"""so many times above the one before,"""
IN_ALL = 30.0
"""and in all so many times above the first. Norms of healthy runs scatter by less than that, and not in one direction."""


def in_the_midst(steps: Indices, least: int) -> bool:
    """Whether a log begins in the midst of a run: at least `least` of its records would have had room before its first."""
    return len(steps) > 1 and bool(steps[0] > least * (steps[1] - steps[0]))


def foot_of_climb(logs: Array) -> Indices:
    """[n] of each record the index at which its climb began, -1 where it does not end one.

    Args:
        logs: [n] logarithms, NaN where unknown; a NaN ends a climb.
    """
    feet, foot = np.full(len(logs), -1), 0
    for i in range(1, len(logs)):
        if not logs[i] - logs[i - 1] > np.log(EACH):
            foot = i
        elif i - foot >= LEAST and logs[i] - logs[foot] > np.log(IN_ALL):
            feet[i] = foot
    return feet
