"""Sees the loss: every form of backward that accumulates gradients passes through one function of torch.autograd.

`torch.autograd._engine_run_backward` is private; it is looked up once, here. Where a torch version has none, no loss is
recorded and the log says so; `Watch.log(loss=...)` still works. `torch.autograd.grad` carries accumulate_grad=False and is not
a training step's backward.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.autograd

from stabkit.hooks.dispatch import Undo, listening, notify, patch_attribute

__all__ = ["LossWindow", "Root", "install"]

_DEPTH = 5  # how far below the root a division by the number of micro-batches is looked for


def install() -> Undo | None:
    """Patch the engine call: events "backward_begin" and "backward_end" with the roots."""
    depth = 0

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def run_backward(roots: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if torch.compiler.is_compiling() or not listening() or kwargs.get("accumulate_grad") is not True:
                return original(roots, *args, **kwargs)
            outermost = depth == 0  # a reentrant checkpoint calls backward from inside backward
            depth += 1
            try:
                if outermost:
                    notify("backward_begin", roots)
                result = original(roots, *args, **kwargs)
                if outermost:
                    notify("backward_end", roots)
                return result
            finally:
                depth -= 1

        return run_backward

    return patch_attribute(torch.autograd, "_engine_run_backward", wrap)


@dataclass
class Root:
    """One scalar root of a backward call.

    Attributes:
        value: Its value, copied at once: the user may overwrite it in place a line later.
        operations: Names of the first nodes of its graph: what kind of loss it is.
        factors: Python numbers it was multiplied by (divisions inverted) in those nodes.
    """

    value: torch.Tensor
    operations: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()


@dataclass
class LossWindow:
    """The backward calls between two steps of one optimizer."""

    roots: list[Root] = field(default_factory=list)
    backward_count: int = 0

    def add(self, roots: Any) -> None:
        """Note one backward call; roots that are not scalars are counted only."""
        self.backward_count += 1
        for root in roots if isinstance(roots, (tuple, list)) else (roots,):
            if isinstance(root, torch.Tensor) and root.numel() == 1 and not root.is_complex():
                value = root.detach().to(torch.float64, copy=True).reshape(())
                self.roots.append(Root(value, *_describe(root)))

    def reduce(self, values: Sequence[float]) -> tuple[float, float, int]:
        """(loss, loss_sum, loss_reduction) of the step from the roots' values.

        The loss is their sum where the user divided each by their number, or where they are different losses; else their mean.
        """
        if not values:
            return float("nan"), float("nan"), 0
        total, count = sum(values), len(values)
        if count == 1:
            return total, total, 1
        divided = all(any(abs(f * count - 1) < 1e-5 for f in root.factors) for root in self.roots)
        differ = len({root.operations for root in self.roots}) > 1
        return (total, total, 2) if divided or differ else (total / count, total, 3)


def _describe(root: torch.Tensor) -> tuple[tuple[str, ...], tuple[float, ...]]:
    operations, factors = [], []
    node: Any = root.grad_fn
    while node is not None and len(operations) < _DEPTH:
        name = node.name()
        operations.append(name)
        if name.startswith(("DivBackward", "MulBackward")):
            other = getattr(node, "_saved_other", None)
            if isinstance(other, torch.Tensor):  # reading a tensor on a device would wait for it
                other = float(other) if other.device.type == "cpu" and other.numel() == 1 else None
            if other:
                factors.append(1 / other if name.startswith("Div") else float(other))
        node = node.next_functions[0][0] if node.next_functions else None
    return tuple(operations), tuple(factors)
