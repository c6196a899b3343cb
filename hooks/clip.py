"""Sees gradient clipping, however the function was imported: what is patched is what the torch functions themselves call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from types import GeneratorType
from typing import Any

import torch
from torch.nn.utils import clip_grad

from stabkit.hooks.dispatch import Nesting, Undo, all_or_none, listening, notify, patch_attribute, patch_closure_cell, trouble
from stabkit.hooks.distributed import whole
from stabkit.hooks.schedule import number

__all__ = ["ClipCall", "install"]

_FUNCTIONS = {"clip_grad_norm_": "norm", "clip_grad_value_": "value", "_clip_grads_with_norm_": "with_norm"}
_nesting = Nesting()  # clip_grad_norm_ calls _clip_grads_with_norm_


@dataclass
class ClipCall:
    """One outermost call of a clipping function.

    Attributes:
        kind: "norm" or "value".
        limit: max_norm or clip_value.
        asked: All that it was given, also those without a gradient.
        order: Of the norm; NaN where the user worked the norm out beforehand, and for clipping by value.
        total_norm: A copy of the norm before clipping, 0-d; None for clipping by value.
        everywhere: Whether that norm is known to be of the whole gradients also where this process holds a shard of them.
        finished: False where it raised.
    """

    kind: str
    limit: float
    asked: list[torch.Tensor]
    order: float = float("nan")
    total_norm: torch.Tensor | None = None
    everywhere: bool = False
    finished: bool = False

    @cached_property
    def parameters(self) -> list[torch.Tensor]:
        """Those whose gradients it scaled. To be asked for first while it runs: gradients come and go."""
        return [p for p in self.asked if p.grad is not None]


def install() -> list[Undo]:
    """Patch the clipping functions: events "clip_begin" and "clip_end" with a `ClipCall`."""
    undo: list[Undo | None] = [*all_or_none(_patched(name) for name in _FUNCTIONS if not name.startswith("_"))]
    if not undo:
        return []
    undo += [_patched(name) for name in _FUNCTIONS if name.startswith("_")]  # torch 2.5 and newer
    fsdp1 = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if fsdp1 is not None:  # its clip_grad_norm_ scales the gradients itself
        undo.append(patch_attribute(fsdp1, "clip_grad_norm_", _wrapper("fsdp1")))
    return [u for u in undo if u is not None]


def _patched(name: str) -> Undo | None:
    return patch_closure_cell(getattr(clip_grad, name, None), _wrapper(_FUNCTIONS[name]))


def _wrapper(kind: str) -> Any:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def clip(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or not listening():
                return original(*args, **kwargs)
            args, kwargs = _materialised(args, kwargs)
            with _nesting as outermost:
                if not outermost:
                    return original(*args, **kwargs)
                call = _describe(kind, args, kwargs)
                if isinstance(call, Exception):
                    result = original(*args, **kwargs)
                    trouble("clip_begin", call)  # torch has not refused what we could not read
                    return result
                notify("clip_begin", call)
                try:
                    result = original(*args, **kwargs)
                    _finish(call, result)
                    return result
                finally:
                    notify("clip_end", call)

        return clip

    return wrap


def _materialised(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with a generator of parameters turned into a list, so that looking does not use it up."""

    def listed(parameters: Any) -> Any:
        if isinstance(parameters, (torch.Tensor, list, tuple)) or not isinstance(parameters, Iterable):
            return parameters
        items = list(parameters)
        # torch warns about an empty generator, and about nothing else that is empty
        return (item for item in items) if not items and isinstance(parameters, GeneratorType) else items

    if args:
        return (listed(args[0]), *args[1:]), kwargs
    if "parameters" in kwargs:
        return args, {**kwargs, "parameters": listed(kwargs["parameters"])}
    return args, kwargs


def _describe(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ClipCall | Exception:
    try:

        def argument(place: int, name: str, default: Any = None) -> Any:
            return args[place] if len(args) > place else kwargs.get(name, default)

        parameters = argument(0, "parameters") if kind != "fsdp1" else args[0].parameters()
        asked = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        if kind == "value":
            return ClipCall("value", number(argument(1, "clip_value")), asked)
        call = ClipCall("norm", number(argument(1, "max_norm")), asked, everywhere=kind == "fsdp1")
        if kind == "with_norm":
            call.total_norm, call.everywhere = _copy(given := argument(2, "total_norm")), _is_distributed(given)
        else:
            call.order = number(float(argument(2, "norm_type", 2.0)))
        return call
    except Exception as error:  # a call torch itself will refuse, as a rule, with a better message than ours
        return error


def _finish(call: ClipCall, result: Any) -> None:
    try:
        call.finished = True
        if call.kind == "norm" and call.total_norm is None:
            call.total_norm, call.everywhere = _copy(result), call.everywhere or _is_distributed(result)
    except Exception as error:  # the norm stays unknown; the user's clipping is done and must not fail
        call.total_norm = None
        trouble("clip_end", error)


def _is_distributed(norm: Any) -> bool:
    return hasattr(norm, "_local_tensor")


def _copy(norm: Any) -> torch.Tensor | None:
    own = whole(norm) if isinstance(norm, torch.Tensor) else None
    return None if own is None else own.detach().to(torch.float64, copy=True).reshape(())
