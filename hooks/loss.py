"""Sees the loss: every form of backward that accumulates gradients passes through one function of torch.autograd.

`torch.autograd._engine_run_backward` is private; it is looked up once, here. Where a torch version has none, no loss is
recorded and the log says so; `Watch.log(loss=...)` still works. `torch.autograd.grad` carries accumulate_grad=False and is not
a training step's backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.autograd

from stabkit.hooks.dispatch import Nesting, Undo, listening, notify, patch_attribute
from stabkit.hooks.distributed import whole
from stabkit.hooks.transfer import Batch, Later, Number, reachable

__all__ = ["LossWindow", "Root", "install", "look_at"]

_DEPTH = 5  # nodes below the root that tell what kind of loss it is, and whether it was divided
_TRANSPARENT = ("ToCopy", "Mean", "Sum", "Squeeze", "View", "Reshape", "Alias", "Clone", "Div", "Mul")
"""Nodes through which a division by the number of micro-batches is looked for: any other is part of the loss itself."""
_SUM = 2  # torch's number for reduction="sum"
_nesting = Nesting()  # a reentrant checkpoint calls backward from inside backward, on a GPU from another thread


def install() -> list[Undo]:
    """Patch the engine call: events "backward_begin" with the roots, "backward_end" with whether it went through."""

    def wrap(original: Any) -> Any:
        @functools.partial(torch.compiler.disable, recursive=False)  # this frame is not traced; what backward compiles still is
        @functools.wraps(original)
        def run_backward(roots: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or not listening() or kwargs.get("accumulate_grad") is not True:
                return original(roots, *args, **kwargs)
            with _nesting as outermost:
                if not outermost:
                    return original(roots, *args, **kwargs)
                notify("backward_begin", roots)
                finished = False
                try:
                    result = original(roots, *args, **kwargs)
                    finished = True
                    return result
                finally:
                    notify("backward_end", finished)

        return run_backward

    undo = patch_attribute(torch.autograd, "_engine_run_backward", wrap)
    return [] if undo is None else [undo]


@dataclass
class Root:
    """One root of a backward call.

    Attributes:
        value: Its value, copied at once (the user may overwrite it in place a line later); None where it is no scalar
            that can be had.
        operations: Names of the first nodes of its graph: what kind of loss it is.
        factors: Numbers it was multiplied by, or divided by (True), at the very end.
        items: How many numbers were added up for it, such as the losses of tokens, as factors; none for a mean.
        weighed: Whether it was multiplied or divided by anything there, a number that can be read or not.
    """

    value: torch.Tensor | None
    operations: tuple[str, ...] = ()
    factors: tuple[tuple[Number, bool], ...] = ()
    items: tuple[Number, ...] = ()
    weighed: bool = False


def look_at(roots: Any) -> list[Root]:
    """Describe the roots of a backward call that is about to begin; afterwards their graph is gone."""
    seen = []
    for root in roots if isinstance(roots, (tuple, list)) else (roots,):
        scalar = isinstance(root, torch.Tensor) and root.numel() == 1 and not root.is_complex()
        own = whole(root) if scalar else None
        if own is not None and reachable(own):
            value = own.detach().to(torch.float64, copy=True).reshape(())
            seen.append(Root(value, *_describe(root.grad_fn)))
        else:
            seen.append(Root(None))
    return seen


@dataclass
class LossWindow:
    """The backward calls between two steps of one optimizer.

    Attributes:
        calls: The roots of each.
        failed: Whether one raised half-way: the gradients are then of no known loss.
        divisor: The number of calls by which roots were divided when it last was their own: those left over at the end of an
            epoch are fewer, and divided by it all the same. 0 before.
    """

    calls: list[list[Root]] = field(default_factory=list)
    failed: bool = False
    divisor: int = 0
    _values: list[Later] = field(default_factory=list)
    _factors: list[list[tuple[Later, bool]]] = field(default_factory=list)
    _items: list[list[Later]] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether any backward reached the optimizer's gradients."""
        return self.failed or bool(self.calls)

    def following(self) -> LossWindow:
        """The window of the next step."""
        return LossWindow(divisor=self.divisor)

    @property
    def plain(self) -> bool:
        """Whether every root is a mean that nothing was multiplied or divided by: no sum of items, no weight."""
        return not any(root.weighed or root.items for call in self.calls for root in call)

    @property
    def kinds(self) -> int:
        """How many kinds of loss the calls were of, as far as their first operations tell."""
        return len({tuple(root.operations for root in call) for call in self.calls})

    def ask(self, batch: Batch) -> None:
        """Put the values of all roots, and what they were divided by, into a batch."""
        roots = [root for call in self.calls for root in call]
        known = not self.failed and all(root.value is not None for root in roots)
        self._values = [batch.add(root.value) for root in roots if root.value is not None] if known else []
        many = known and len(self.calls) > 1
        self._factors = [[(batch.add(f), inverted) for f, inverted in root.factors] for root in roots] if many else []
        self._items = [[batch.add(number) for number in call[0].items] for call in self.calls if call] if many else []

    def reduce(self) -> tuple[float, float, int]:
        """(loss, loss_sum, loss_reduction) of the step, once the batch was fetched.

        Roots of one call add up. Those of several calls do where the user divided each by their number, or by the number of
        items (tokens) in all of them, or where they are different losses; else the loss is their mean.
        """
        if not self._values:
            return math.nan, math.nan, 0
        total, count = sum(later.value for later in self._values), len(self.calls)
        if count == 1:
            return total, total, 1 if len(self._values) == 1 else 2
        factors = [[1 / f.value if inverted and f.value else f.value for f, inverted in each] for each in self._factors]
        by = [n for n in (count, self.divisor) if all(_divided(each, n) for each in factors)]
        self.divisor = by[0] if by else self.divisor
        divided = bool(by) or self._over_all_items(factors)
        return (total, total, 2) if divided or self.kinds > 1 else (total / count, total, 3)

    def _over_all_items(self, factors: list[list[float]]) -> bool:
        """Whether the roots are sums over items (tokens), each divided by about the number of items in all of them.

        About, because Transformers counts the first token of every sequence, which is no target. Had each been divided by its
        own items, the shares would add up to the number of roots.
        """
        if not (len(factors) == len(self._items) and all(factors) and all(self._items)):
            return False
        items = [math.prod(later.value for later in each) for each in self._items]
        return 0.8 < sum(n * math.prod(each) for n, each in zip(items, factors, strict=True)) < 1 + 1e-5


def _divided(factors: Sequence[float], by: float) -> bool:
    """Whether one of the factors, or all of them together, divide by a number."""
    return any(abs(f * by - 1) < 1e-5 for f in (*factors, math.prod(factors)))


def _describe(node: Any) -> tuple[tuple[str, ...], tuple[tuple[Number, bool], ...], tuple[Number, ...], bool]:
    operations: list[str] = []
    factors: list[tuple[Number, bool]] = []
    items: list[Number] = []
    outside, weighed = True, False
    while node is not None and len(operations) < _DEPTH:
        name = node.name()
        operations.append(name)
        items += _items(name, node) if outside else []
        outside = outside and name.startswith(_TRANSPARENT)
        if outside and name.startswith(("DivBackward", "MulBackward")):
            weighed = True
            factor = _other_of(node)
            if factor is not None:
                factors.append((factor, name.startswith("Div")))
        following = node.next_functions  # made anew each time, for a node that joins hundreds of tensors
        node = following[0][0] if following else None
    return tuple(operations), tuple(factors), tuple(items), weighed


def _items(name: str, node: Any) -> list[Number]:
    """How many numbers a node adds up, where that can be told without waiting; nothing where it does not, or averages."""
    try:
        if name.startswith("SumBackward"):
            return [float(math.prod(node._saved_self_sym_sizes))]
        if getattr(node, "_saved_reduction", None) != _SUM:
            return []
        if not name.startswith("NllLoss"):
            return [float(node._saved_self.numel())]
        weight = node._saved_total_weight  # without class weights: the number of targets that are not ignored
        return [weight.detach().clone()]
    except (AttributeError, RuntimeError):  # another torch calls it otherwise, or the graph is used a second time
        return []


def _other_of(node: Any) -> Number | None:
    try:
        other = getattr(node, "_saved_other", None)
    except RuntimeError:  # the graph is used a second time, or the number was overwritten in place: backward will tell
        return None
    if isinstance(other, torch.Tensor):
        if other.numel() != 1 or other.is_complex():
            return None
        if type(other) is not torch.Tensor:
            return other.detach().clone()
        with torch._C._DisableTorchDispatch():  # a dispatch mode of the user's makes torch fail at a number it has wrapped
            return other.detach().clone()
    return float(other) if isinstance(other, (int, float)) else None
