"""Finds parameters of an optimizer that no gradient ever reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Reach"]

_STEPS = 20
"""Steps after which a parameter that is used at all has had a gradient."""


class Reach:
    """Which parameters of one optimizer have had a gradient in its first steps."""

    def __init__(self) -> None:
        self._without: list[torch.Tensor] | None = None
        self._some_have = False
        self._steps = 0

    def look(self, parameters: Sequence[torch.Tensor]) -> None:
        """The gradients may be there: the optimizer is about to step, or has stepped."""
        if self._steps < _STEPS:
            self._some_have = self._some_have or any(p.grad is not None for p in parameters)
            before = parameters if self._without is None else self._without
            self._without = [p for p in before if p.requires_grad and p.grad is None]

    def stepped(self, parameters: Sequence[torch.Tensor]) -> None:
        """A step is over."""
        self.look(parameters)
        self._steps += 1

    def unreached(self, last: bool = False) -> list[torch.Tensor]:
        """Parameters without a gradient so far, if others had one: told once, after some steps or at the end."""
        if not self._without or self._steps < 2 or (self._steps < _STEPS and not last):
            return []
        found, self._without, self._steps = self._without, [], _STEPS
        return found if self._some_have else []
