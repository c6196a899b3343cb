"""Counts the failures of our own, and decides what is given up after a few in a row: the part that fails, or all."""

from __future__ import annotations

from collections import Counter

__all__ = ["Faults", "SeveralThreads"]

_ALLOWED = 3
_SIDES = {"clip_begin": "clip", "clip_end": "clip", "zeroed": "zeroing", "scheduler_step": "schedule", "autocast": "precision"}
"""What sees each event, where the rest of a record is true without it: such a part is given up by itself."""


class SeveralThreads(RuntimeError):
    """Two threads train at once what one `watch` looks at: what belongs to which step cannot be told, now or later."""


class Faults:
    """What has failed since the last good step.

    Attributes:
        given_up: The parts whose events are no longer looked at.
        all_over: Whether nothing is looked at any more.
    """

    def __init__(self) -> None:
        self.given_up: set[str] = set()
        self.all_over = False
        self._serious = self._in_a_row = 0
        self._of_part: Counter[str] = Counter()

    def passed_over(self, event: str) -> bool:
        """Whether an event belongs to a part that was given up."""
        return bool(self.given_up) and _SIDES.get(event) in self.given_up

    def add(self, event: str, error: Exception) -> str:
        """Count a failure; returns the part that is given up for it, "" for none."""
        self._in_a_row += 1
        part = _SIDES.get(event, "")
        if not part:
            self._serious += not isinstance(error, OSError)  # a full disk may have room again later
            self.all_over = self._serious >= _ALLOWED or isinstance(error, SeveralThreads)
            return ""
        self._of_part[part] += 1
        if self._of_part[part] != _ALLOWED:
            return ""
        self.given_up.add(part)
        return part

    @property
    def worth_a_note(self) -> bool:
        """Whether the last one should be noted: a full disk can refuse every step of a long run."""
        return self._in_a_row <= _ALLOWED

    def good_step(self) -> None:
        """A step was recorded."""
        if self._in_a_row:
            self._serious = self._in_a_row = 0
            self._of_part.clear()
