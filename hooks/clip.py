"""Sees gradient clipping, however the function was imported: what is patched is what the torch functions themselves call."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import clip_grad

from stabkit.hooks.dispatch import Undo, listening, notify, patch_closure_cell

__all__ = ["ClipCall", "install"]

_FUNCTIONS = {"clip_grad_norm_": "norm", "clip_grad_value_": "value", "_clip_grads_with_norm_": "with_norm"}


@dataclass
class ClipCall:
    """One outermost call of a clipping function.

    Attributes:
        kind: "norm" or "value".
        limit: max_norm or clip_value.
        parameters: The tensors whose gradients it scaled.
        total_norm: A copy of the norm before clipping, 0-d, of whatever order the user chose; None for clipping by value.
        finished: False where it raised.
    """

    kind: str
    limit: float
    parameters: list[torch.Tensor]
    total_norm: torch.Tensor | None = None
    finished: bool = False


def install() -> list[Undo]:
    """Patch the clipping functions: events "clip_begin" and "clip_end" with a `ClipCall`."""
    depth = 0

    def wrap_as(kind: str) -> Any:
        def wrap(original: Any) -> Any:
            @functools.wraps(original)
            def clip(*args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                if torch.compiler.is_compiling() or not listening():
                    return original(*args, **kwargs)
                args, kwargs = _materialised(args, kwargs)
                call = _describe(kind, args, kwargs) if depth == 0 else None  # clip_grad_norm_ calls _clip_grads_with_norm_
                depth += 1
                try:
                    if call:
                        notify("clip_begin", call)
                    result = original(*args, **kwargs)
                    if call:
                        _finish(call, result)
                    return result
                finally:
                    depth -= 1
                    if call:
                        notify("clip_end", call)

            return clip

        return wrap

    undo = (patch_closure_cell(getattr(clip_grad, name, None), wrap_as(kind)) for name, kind in _FUNCTIONS.items())
    return [u for u in undo if u is not None]


def _materialised(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with a generator of parameters turned into a list, so that looking does not use it up.

    An empty generator stays a generator: torch warns about exactly that.
    """

    def listed(parameters: Any) -> Any:
        if isinstance(parameters, (torch.Tensor, list, tuple)) or not isinstance(parameters, Iterable):
            return parameters
        return list(parameters) or iter(())

    if args:
        return (listed(args[0]), *args[1:]), kwargs
    if "parameters" in kwargs:
        return args, {**kwargs, "parameters": listed(kwargs["parameters"])}
    return args, kwargs


def _describe(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ClipCall | None:
    try:
        parameters = args[0] if args else kwargs["parameters"]
        name = "clip_value" if kind == "value" else "max_norm"
        limit = args[1] if len(args) > 1 else kwargs[name]
        tensors = [parameters] if isinstance(parameters, torch.Tensor) else [p for p in parameters if p.grad is not None]
        call = ClipCall("value" if kind == "value" else "norm", float(limit), tensors)
        if kind == "with_norm":
            call.total_norm = _copy(args[2] if len(args) > 2 else kwargs.get("total_norm"))
        return call
    except Exception:  # a call torch itself will refuse, with a better message than ours
        return None


def _finish(call: ClipCall, result: Any) -> None:
    call.finished = True
    try:
        if call.kind == "norm" and call.total_norm is None:
            call.total_norm = _copy(result)
    except Exception:  # the norm stays unknown; the user's clipping is done and must not fail
        call.total_norm = None


def _copy(norm: Any) -> torch.Tensor | None:
    # Exactly a Tensor: arithmetic on a DTensor could start a collective.
    return norm.detach().to(torch.float64, copy=True).reshape(()) if type(norm) is torch.Tensor else None
