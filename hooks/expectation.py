"""How often clipping by norm writes to each gradient, learnt from calls before and after which all gradients were looked at.

Once that is known, one gradient speaks for all: a call costs one look at it instead of two at each. What was expected wrongly
shows at the next full look, as a version nobody accounts for, and is then never expected again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.hooks.clip import ClipCall
from stabkit.hooks.signatures import Signatures, signature, writes, written

__all__ = ["Expectation"]

_ENOUGH = 2
"""Calls in a row that wrote alike. It need not be once to each: gradients that are views of a bucket share a version."""
_KINDS = 64
"""Calls on different parameters that are told apart."""

Writes: TypeAlias = NDArray[np.int64]
"""How often each gradient was written to."""
_Kind: TypeAlias = tuple[int, int, int]

_NOTHING: tuple[int, Writes] = (0, np.empty(0, np.int64))


class Expectation:
    """What is expected of the clipping calls on one list of parameters.

    Args:
        parameters: Those of the optimizer.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = parameters
        self._learnt: dict[_Kind, tuple[int, Writes]] = {}  # calls in a row that wrote alike, and what each wrote
        self._trusted = True
        self.begin_step()

    def begin_step(self) -> None:
        """No call was made yet."""
        self._found: Signatures | None = None  # the gradients as the call under way found them
        self._sampled: tuple[int, tuple[int, int]] | None = None

    @property
    def used(self) -> bool:
        """Whether of the last call one gradient was looked at only."""
        return self._sampled is not None

    def begin(self, call: ClipCall, concerned: Sequence[int], seen: Signatures | None) -> bool:
        """Whether one gradient, which is looked at now, will tell what the call does to all; else all have to be looked at.

        Args:
            call: A clipping call.
            concerned: The places of the gradients it clips.
            seen: How the gradients were seen before; None where they were not.
        """
        self.begin_step()
        if self._trusted and seen is not None and concerned and call.kind == "norm":
            times, many = self._learnt.get(_kind(concerned), _NOTHING)
            place = concerned[0]
            grad = self._parameters[place].grad
            if times >= _ENOUGH and many[place] > 0 and type(grad) is torch.Tensor:
                self._sampled = place, signature(grad)
        return self.used

    def looked(self, found: Signatures | None) -> None:
        """All were looked at as the call begins."""
        self._found = found

    def after(self, concerned: Sequence[int], seen: Signatures) -> Signatures | None:
        """The gradients as the call leaves them, given how they were seen before; None where it did not do as expected."""
        assert self._sampled is not None
        (place, (before, version)), many = self._sampled, self._learnt[_kind(concerned)][1]
        as_expected = signature(self._parameters[place].grad) == (before, version + int(many[place]))
        return written(seen, many) if as_expected else None

    def learn(self, call: ClipCall, concerned: Sequence[int], left: Signatures | None) -> None:
        """All were looked at after the call, too."""
        if call.kind != "norm" or not call.finished or not concerned or self._found is None or left is None:
            return
        many, kind = writes(self._found, left), _kind(concerned)
        times, before = self._learnt.pop(kind, _NOTHING)
        if many is not None and len(self._learnt) < _KINDS:
            self._learnt[kind] = times + 1 if np.array_equal(many, before) else 1, many

    def surprised(self) -> None:
        """A gradient is not as it was seen last: somebody wrote to it, or what was expected of the last call was wrong."""
        self._learnt.clear()
        self._trusted = self._trusted and not self.used


def _kind(concerned: Sequence[int]) -> _Kind:
    """Tells calls on different parameters apart, mostly; where it does not, what was expected is seen to be wrong."""
    return len(concerned), concerned[0], concerned[-1]
