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

__all__ = ["LossWindow", "Root", "install", "look_at"]

_DEPTH = 5  # nodes below the root that tell what kind of loss it is, and whether it was divided
_TRANSPARENT = ("ToCopy", "Mean", "Sum", "Squeeze", "View", "Reshape", "Alias", "Clone", "Div", "Mul")
"""Nodes through which a division by the number of micro-batches is looked for: any other is part of the loss itself."""
_nesting = Nesting()  # a reentrant checkpoint calls backward from inside backward, on a GPU from another thread


def install() -> list[Undo]:
    """Patch the engine call: events "backward_begin" with the roots, "backward_end" with whether it went through."""

    def wrap(original: Any) -> Any:
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
            on the CPU.
        operations: Names of the first nodes of its graph: what kind of loss it is.
        factors: Python numbers it was multiplied by (divisions inverted) at the very end.
    """

    value: torch.Tensor | None
    operations: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()


def look_at(roots: Any) -> list[Root]:
    """Describe the roots of a backward call that is about to begin; afterwards their graph is gone."""
    seen = []
    for root in roots if isinstance(roots, (tuple, list)) else (roots,):
        scalar = isinstance(root, torch.Tensor) and root.numel() == 1 and not root.is_complex()
        own = whole(root) if scalar else None
        if own is not None and own.is_cpu:  # reading a value on a device would make the training wait
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
    """

    calls: list[list[Root]] = field(default_factory=list)
    failed: bool = False

    @property
    def begun(self) -> bool:
        """Whether any backward reached the optimizer's gradients."""
        return self.failed or bool(self.calls)

    def values(self) -> list[torch.Tensor]:
        """The values of all roots, 0-d float64; none where they do not add up to the loss of the step."""
        roots = [root.value for call in self.calls for root in call]
        return [] if self.failed or any(v is None for v in roots) else [v for v in roots if v is not None]

    def reduce(self, values: Sequence[float]) -> tuple[float, float, int]:
        """(loss, loss_sum, loss_reduction) of the step from the roots' values.

        Roots of one call add up. Those of several calls do where the user divided each by their number, or where they are
        different losses; else the loss is their mean.
        """
        if not values:
            return math.nan, math.nan, 0
        total, count = sum(values), len(self.calls)
        if count == 1:
            return total, total, 1 if len(values) == 1 else 2
        roots = [root for call in self.calls for root in call]
        divided = all(any(abs(f * count - 1) < 1e-5 for f in root.factors) for root in roots)
        differ = len({tuple(root.operations for root in call) for call in self.calls}) > 1
        return (total, total, 2) if divided or differ else (total / count, total, 3)


def _describe(node: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    operations: list[str] = []
    factors: list[float] = []
    outside = True
    while node is not None and len(operations) < _DEPTH:
        name = node.name()
        operations.append(name)
        outside = outside and name.startswith(_TRANSPARENT)
        if outside and name.startswith(("DivBackward", "MulBackward")):
            factor = _python_number(node)
            if factor:
                factors.append(1 / factor if name.startswith("Div") else factor)
        node = node.next_functions[0][0] if node.next_functions else None
    return tuple(operations), tuple(factors)


def _python_number(node: Any) -> float | None:
    try:
        other = getattr(node, "_saved_other", None)
    except RuntimeError:  # the graph is used a second time, or the number was overwritten in place: backward will tell
        return None
    if isinstance(other, torch.Tensor):  # reading a tensor on a device would wait for it
        if not other.is_cpu or other.numel() != 1 or other.is_complex():
            return None
        if type(other) is not torch.Tensor:
            return float(other)
        with torch._C._DisableTorchDispatch():  # a dispatch mode of the user's makes torch fail at a number it has wrapped
            return float(other)
    return float(other) if isinstance(other, (int, float)) else None
