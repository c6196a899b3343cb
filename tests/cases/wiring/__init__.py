"""Loops wired wrongly and their healthy twins: small enough to be trained anew in every test, under fused and foreach AdamW."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import stabkit

__all__ = ["Training", "WiringCase"]

Training = Callable[[str, Path], stabkit.RunLog]
"""(implementation of AdamW, log directory) -> what was recorded of a real training."""


@dataclass(frozen=True, kw_only=True)
class WiringCase:
    """A mistake and the same loop without it.

    Attributes:
        rule: The code of the rule that must find it.
        sick: Trains with the mistake.
        healthy: Trains without it; the rule must have looked and be clear.
        first_step: The step at which the rule fires.
        tensor: The tensor it names, if any.
    """

    rule: str
    sick: Training
    healthy: Training
    first_step: int
    tensor: str | None = None
