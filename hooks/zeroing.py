"""Sees gradients being zeroed in place: `zero_grad(set_to_none=False)` of optimizers and modules.

Gradients set to None need no looking at, and nobody is told. Whether a gradient that is there is all zeros could be told from
its elements, but on a device that would make training wait.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from stabkit.hooks.dispatch import Undo, all_or_none, listening, notify, patch_attribute
from stabkit.hooks.roster import parameters_of

__all__ = ["install"]


def install() -> list[Undo]:
    """Patch `zero_grad` of the base classes: event "zeroed" (parameters), after it."""
    return all_or_none([
        patch_attribute(Optimizer, "zero_grad", _wrapper(parameters_of)),
        patch_attribute(nn.Module, "zero_grad", _wrapper(nn.Module.parameters)),
    ])  # fmt: skip


def _wrapper(parameters: Callable[[Any], Iterable[torch.Tensor]]) -> Callable[[Any], Any]:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            to_none = args[0] if args else kwargs.get("set_to_none", True)
            if not (to_none is True or torch.compiler.is_compiling()) and listening():
                notify("zeroed", self, parameters)
            return result

        return zero_grad

    return wrap
