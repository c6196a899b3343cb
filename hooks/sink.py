"""Where the records of a monitor go."""

from __future__ import annotations

from typing import Any, Protocol

from stabkit.runlog import Layout, StepRecord

__all__ = ["Sink"]


class Sink(Protocol):
    """Where a monitor's records go. Whatever a method raises is caught, noted, and after a few times the monitor stops."""

    def layout(self, optimizer: int, layout: Layout) -> int:
        """Announce the layout of an optimizer's records; returns the number to put into them."""

    def attempt(self, optimizer: int, count: int) -> tuple[int, int]:
        """An optimizer that has counted so many steps (-1: it keeps no count) is about to take its first, or has been given
        another state since its last. Returns the attempt and the number of the step it is about to take.
        """

    def step(self, optimizer: int, record: StepRecord) -> None:
        """Take a record."""

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Take numbers that stand beside a step, such as those of its forward pass."""

    def event(self, event: str, **details: Any) -> None:
        """Take a note about the run."""
