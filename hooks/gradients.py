"""Keeps watch over who wrote to the gradients, so that the norm before clipping is told only where it can be proved.

Every in-place write bumps a tensor's version counter. Between the end of the last backward and the step, the one write that is
understood is that of a clipping call which was seen; any other makes the gradient before clipping unknowable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stabkit.hooks.clip import ClipCall

__all__ = ["GradientLedger", "signatures"]

Signature = tuple[int, int] | None


def signatures(parameters: Sequence[torch.Tensor]) -> list[Signature]:
    """(identity, version) of each parameter's gradient, None where it has none."""
    return [None if (g := p.grad) is None else (id(g), g._version) for p in parameters]


class GradientLedger:
    """What is known about each gradient of one optimizer since its last step."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = list(parameters)
        self._place = {id(p): i for i, p in enumerate(self.parameters)}
        self.begin()

    def begin(self) -> None:
        """Forget everything: a new step begins."""
        self._seen: list[Signature] | None = None
        self._altered: set[int] = set()
        self.clipped: dict[int, ClipCall] = {}
        self.before_clip: dict[int, torch.Tensor] = {}
        """Sums of squares before clipping by value, 0-d float64, by place: no coefficient gives them back."""

    def after_backward(self, now: list[Signature]) -> None:
        """Gradients were accumulated: what was clipped before is now a mixture."""
        self._altered |= set(self.clipped)
        self._seen = now

    def before_backward(self, now: list[Signature]) -> None:
        """A further backward begins: whatever changed since the last one was not us."""
        self._compare(now)

    def clip_begins(self, call: ClipCall) -> None:
        """Check the gradients as the call finds them; for clipping by value, note their size."""
        self._compare(signatures(self.parameters))
        for i in self._places(call):
            if i in self.clipped:
                self._altered.add(i)
            elif call.kind == "value":
                grad = self.parameters[i].grad
                if grad is not None and grad.layout is torch.strided:
                    wide = torch.view_as_real(grad) if grad.is_complex() else grad
                    self.before_clip[i] = wide.to(torch.float64).square().sum()

    def clip_ends(self, call: ClipCall) -> None:
        """Take the writes of the call as understood."""
        self._seen = signatures(self.parameters)
        for i in self._places(call):
            self.clipped[i] = call
            if not call.finished:
                self._altered.add(i)

    def provable(self) -> list[bool]:
        """Of each parameter, whether its gradient before clipping can still be told. Call as the step begins."""
        self._compare(signatures(self.parameters))
        return [i not in self._altered for i in range(len(self.parameters))]

    def _compare(self, now: list[Signature]) -> None:
        if self._seen is not None:
            self._altered |= {i for i, (a, b) in enumerate(zip(self._seen, now, strict=True)) if a != b}
            self._seen = now

    def _places(self, call: ClipCall) -> list[int]:
        return [self._place[id(p)] for p in call.parameters if id(p) in self._place]
