"""Keeps watch over who wrote to the gradients, so that the norm before clipping is told only where it can be proved.

Every in-place write bumps a tensor's version counter. Between the end of the last backward and the step, the one write that is
understood is that of a clipping call which was seen; any other makes the gradient before clipping unknowable.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from operator import attrgetter, is_

import numpy as np
import torch

from stabkit.hooks.clip import ClipCall
from stabkit.hooks.distributed import local, local_like
from stabkit.hooks.expectation import Expectation
from stabkit.hooks.signatures import (
    Signatures,
    changed,
    chosen,
    everywhere,
    none,
    places,
    signature,
    signatures,
    untouched,
)
from stabkit.hooks.statistics import AdamStep, TensorState, measure_before
from stabkit.hooks.transfer import Batch, Later, Number, on_host
from stabkit.metric import Array

__all__ = ["GradientLedger", "is_zero"]

_WIDE = {torch.float32, torch.float64, torch.bfloat16}
_DTYPE = attrgetter("dtype")
_PLENTY = 1e-58
"""A sum of squares of up to 10^11 elements of these dtypes: above it they are far from the smallest numbers there are."""

_PLAIN = AdamStep(lr=0, beta1=0, beta2=0, eps=0, weight_decay=0, count=0, maximize=False, decoupled=True)


class GradientLedger:
    """What is known about each gradient of one optimizer since its last step.

    Attributes:
        parameters: The optimizer's.
        calls: The clipping calls that touched any of them, oldest first.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._index(parameters)
        self._begin()

    def following(self) -> GradientLedger:
        """That of the next step. This one stays as it is: its numbers may still be on their way from a device."""
        following = copy.copy(self)
        following._known = {}
        following._begin()
        return following

    def _begin(self) -> None:
        self.calls: list[ClipCall] = []
        self._seen: Signatures | None = None  # as the last event left the gradients
        self._complete = False  # whether a backward was seen
        self._altered: set[int] = set()
        self._clipped: dict[int, ClipCall] = {}
        self._expectation.begin_step()
        self._batch = Batch()
        self._sums: dict[int, Array] = {}  # of squares before clipping by value: no coefficient gives them back
        self._zeroed: dict[int, tuple[int, int]] = {}
        self._scales: dict[int, Number] = {}  # that the gradients carried when a call found them
        self._numbers: dict[int, tuple[Later, Later]] = {}  # of each call: total norm, scale

    def follow(self, parameters: Sequence[torch.Tensor]) -> None:
        """The optimizer has other parameters now; of a step in progress nothing more can be proved."""
        self._index(parameters)
        self._seen = None
        self._complete = False

    def part(self, parameters: Sequence[torch.Tensor]) -> GradientLedger:
        """What is known of the gradients of other parameters; those that this ledger does not follow have none in it."""
        part = GradientLedger(parameters)
        place = self._place
        moved = {place[id(p)]: i for i, p in enumerate(part.parameters) if id(p) in place}
        if self._seen is not None:
            part._seen = chosen(self._seen, [place.get(id(p)) for p in part.parameters])
        part._complete = self._complete
        part._altered = {moved[i] for i in self._altered if i in moved}
        part._clipped = {moved[i]: call for i, call in self._clipped.items() if i in moved}
        part._sums = {moved[i]: value for i, value in self._sums.items() if i in moved}
        part.calls = [call for call in self.calls if part._places(call)]
        part._scales = dict(self._scales)
        part._batch.absorb(self._batch)
        return part

    def forget(self, dropped: Sequence[int]) -> None:
        """The gradients at these places were dropped: what was done to them is of no account any more."""
        self._altered.difference_update(dropped)
        for i in dropped:
            self._clipped.pop(i, None)
            self._sums.pop(i, None)
        self.calls = [call for call in self.calls if any(other is call for other in self._clipped.values())]

    def _index(self, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = list(parameters)
        self._known: dict[int, tuple[ClipCall, list[int]]] = {}
        self._place = {id(p): i for i, p in enumerate(self.parameters)}
        self._all = [*range(len(self.parameters))]
        self._expectation = Expectation(self.parameters)

    def dropped(self, now: Signatures) -> bool:
        """Whether the gradients were thrown away since the last backward, one of which had come: set to None or to zero."""
        if none(now):
            return True
        seen = self._seen
        if seen is None or len(seen) != len(now) or untouched(seen, now):
            return False
        grads = ((i, self.parameters[i].grad) for i in places(now))
        return all(signature(grad) == self._zeroed.get(i) or is_zero(grad) for i, grad in grads)

    def zeroed(self, parameters: Iterable[torch.Tensor]) -> None:
        """The gradients of these were set to None or to zero."""
        if none(signatures(self.parameters)):
            return
        for place in (self._place.get(id(p)) for p in parameters):
            if place is not None and (grad := self.parameters[place].grad) is not None:
                self._zeroed[place] = signature(grad)

    def before_backward(self, now: Signatures) -> None:
        """A further backward begins: whatever changed since the last one was not us."""
        self._compare(now)

    def after_backward(self, now: Signatures) -> None:
        """Gradients were accumulated: what was clipped before is now a mixture."""
        self._altered |= set(self._clipped)
        self._seen = now
        self._complete = True

    def clip_begins(self, call: ClipCall, scale: Number = 1.0) -> None:
        """Check the gradients as the call finds them; for clipping by value, note their size.

        Args:
            call: The call.
            scale: The loss scale that the gradients still carry.
        """
        self._scales[id(call)] = scale
        concerned = self._places(call)
        if not self._expectation.begin(call, concerned, self._seen):
            self._compare(signatures(self.parameters))
            self._expectation.looked(self._seen)
        if self._clipped:
            self._altered.update(i for i in concerned if i in self._clipped)
        if call.kind == "value":
            shards = {i: local_like(self.parameters[i].grad, self.parameters[i]) for i in concerned}
            grads = {i: g for i, g in shards.items() if g is not None and g.layout is torch.strided}
            states = [TensorState(grad, None, None, None) for grad in grads.values()]
            self._sums.update(zip(grads, measure_before(states, [_PLAIN] * len(states), self._batch), strict=True))

    def concerned(self, call: ClipCall) -> frozenset[int] | None:
        """Places of the gradients that a call clips, None where it clips others' only.

        None of ours are clipped, too, by a call that finds no gradient at all though it was given our parameters.
        """
        found = self._places(call)
        ours = found or (not call.parameters and any(id(p) in self._place for p in call.asked))
        return frozenset(found) if ours else None

    def alive(self) -> Number:
        """Above 0 where the gradients were not set to zero behind the version counter, as `p.grad.data.zero_()` does.

        The largest speaks for all.
        """
        largest = max((p.grad for p in self.parameters if p.grad is not None), key=torch.Tensor.numel, default=None)
        own = None if largest is None else local(largest)
        return own.any() if own is not None and own.layout is torch.strided else 1.0

    def hand_made(self) -> bool:
        """Whether something else than a clipping call that was seen wrote to the gradients since backward."""
        return bool(self._altered)

    def clip_ends(self, call: ClipCall) -> None:
        """Take the writes of the call as understood."""
        concerned = self._places(call)
        self._take_in(call, concerned)
        self._clipped.update(dict.fromkeys(concerned, call))
        if not call.finished:
            self._altered.update(concerned)
        elif concerned:
            self.calls.append(call)

    def _take_in(self, call: ClipCall, concerned: Sequence[int]) -> None:
        """Note the gradients as a call has left them."""
        if not self._expectation.used or self._seen is None:
            self.accept()
            self._expectation.learn(call, concerned, self._seen)
        elif (left := self._expectation.after(concerned, self._seen)) is not None:
            self._seen = left
        else:
            self.accept()
            self._altered.update(concerned)  # of what came before the call nobody knows
            self._expectation.surprised()

    def close(self, now: Signatures | None = None) -> None:
        """The step begins: what was written until now counts. The gradients as they are `now`, where that is known."""
        self._compare(signatures(self.parameters) if now is None else now)

    def accept(self) -> None:
        """Take the writes since the last event as understood."""
        self._seen = signatures(self.parameters)

    def rewritten(self, now: Signatures | None = None) -> list[int]:
        """Places of the gradients that were written to since `close`: by the optimizer itself."""
        return [] if self._seen is None else changed(self._seen, signatures(self.parameters) if now is None else now)

    def the_one(self, kind: str) -> ClipCall | None:
        """The clipping call of this kind, where there was exactly one."""
        calls = [call for call in self.calls if call.kind == kind]
        return calls[0] if len(calls) == 1 else None

    def ask(self, batch: Batch) -> None:
        """Put what the clipping calls found into a batch; what follows needs it fetched."""
        batch.absorb(self._batch)
        for call in self.calls:
            norm = math.nan if call.total_norm is None else call.total_norm
            self._numbers[id(call)] = batch.add(norm), batch.add(self._scales.get(id(call), 1.0))

    def total_norm(self, call: ClipCall) -> float:
        """The norm of the unscaled gradients that a call found, NaN where it found none."""
        return self._found_norm(call) / self._scale(call)

    def _found_norm(self, call: ClipCall) -> float:
        return self._numbers[id(call)][0].value

    def _scale(self, call: ClipCall) -> float:
        return self._numbers[id(call)][1].value

    def coefficient(self, call: ClipCall) -> float:
        """What a call multiplied the gradients by."""
        quotient = call.limit / (self._found_norm(call) + 1e-6)
        return 1.0 if quotient > 1 else quotient  # unlike min(), this hands a NaN on, as torch does

    def covers(self, call: ClipCall) -> bool:
        """Whether this one call explains all that happened to the gradients since they were complete."""
        if not self._complete:
            return False
        there = places(self._seen or b"")
        alone = len(self.calls) == 1 and self.calls[0] is call
        if alone and not self._altered and len(there) == len(self._clipped) == len(self.parameters):
            return True  # as nearly always
        return all(self._clipped.get(i) is call and i not in self._altered for i in there)

    def before_clipping(self, used: Array, owners: Sequence[int], wide: bool = False) -> Array:
        """Sums of squares before clipping, from those of the gradients as used; NaN where they cannot be proved.

        Args:
            used: The sums of squares as used.
            owners: The place of the parameter that each of them is of.
            wide: Whether all are known to be of a dtype with a float32's range.
        """
        before = np.full(len(used), np.nan)
        if not self._complete:
            return before
        if (alike := self._unclipped_alike(used, owners, wide)) is not None:
            return alike
        for row, (i, value) in enumerate(zip(owners, used.tolist(), strict=True)):
            call = self._clipped.get(i)
            if i in self._altered:
                continue
            if call is None:
                before[row] = value
            elif call.kind == "value":  # noted of whole parameters
                noted = i in self._sums and len(owners) == len(self.parameters)
                before[row] = float(self._sums[i][0]) / self._scale(call) ** 2 if noted else math.nan
            else:
                before[row] = self._unclipped(i, value, self.coefficient(call))
        return before

    def _unclipped_alike(self, used: Array, owners: Sequence[int], wide: bool) -> Array | None:
        """The same for all gradients at once, where nothing befell any or one call clipped all; else None.

        Gradients so small that scaling them down has rounded something away are left to `_unclipped`.
        """
        if self._altered or len(self.calls) > 1 or len(owners) != len(self.parameters):
            return None
        everything: Array = used.copy()
        if not self._clipped:
            return everything
        call = next(iter(self._clipped.values()))  # one that did not finish has altered them
        if call.kind == "value":
            return None
        coefficient = self.coefficient(call)
        if coefficient == 1:
            return everything
        plenty = len(self._clipped) == len(owners) and bool(((used > _PLENTY) | (used == 0)).all())
        if not (plenty and coefficient > 1e-7 and (wide or {*map(_DTYPE, self.parameters)} <= _WIDE)):
            return None
        everything /= coefficient**2
        return everything

    def _unclipped(self, i: int, used: float, coefficient: float) -> float:
        if coefficient == 1:
            return used
        if not coefficient > 0:  # an infinite norm wiped everything out, or the norm was NaN
            return math.nan
        own = local(self.parameters[i])  # of the shape and dtype of its gradient, which may be gone
        if own is None or math.isnan(used):
            return math.nan
        if used == 0 and (coefficient > 1e-7 or own.numel() == 0):
            return 0.0
        # Close to the smallest number of the dtype, scaling down has rounded away what scaling up cannot give back.
        typical = math.sqrt(used / max(own.numel(), 1))
        return math.nan if typical < 1e3 * torch.finfo(own.dtype).tiny else used / coefficient**2

    def _compare(self, now: Signatures) -> None:
        if self._seen is not None and (found := changed(self._seen, now)):
            self._altered.update(found)
            self._expectation.surprised()
        self._seen = now

    def _places(self, call: ClipCall) -> list[int]:
        if id(call) not in self._known:
            alike = len(call.asked) == len(self.parameters) and all(map(is_, call.asked, self.parameters))
            everything = alike and self._seen is not None and everywhere(self._seen)
            ids = () if everything else map(id, call.parameters)
            found = self._all if everything else [place for i in ids if (place := self._place.get(i)) is not None]
            self._known[id(call)] = call, found
        return self._known[id(call)][1]


def is_zero(grad: torch.Tensor | None) -> bool:
    """Whether all elements are zero; False where looking would make the training wait."""
    own = None if grad is None else local(grad)
    return own is not None and on_host(own) and own.layout is torch.strided and not bool(own.any())
