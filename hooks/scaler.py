"""Sees gradient scaling: what a loss was multiplied by, whether gradients still carry the scale, and skipped steps.

The wraps are on the class, never on the user's scaler, which is pickled and copied as ever. A skipped step of an optimizer that
cannot take a scale (all but the fused ones) never reaches the optimizer's hooks; it shows as a `GradScaler.step` in which they
did not fire. A fused optimizer is called, carries `grad_scale` and `found_inf` for the time of the call, and skips inside.
"""

from __future__ import annotations

import functools
import math
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from stabkit.hooks.dispatch import Undo, all_or_none, listening, notify, patch_attribute, trouble
from stabkit.hooks.loss import Root, look_at
from stabkit.hooks.transfer import Number

__all__ = ["Scaling", "carried_scale", "found_inf", "install"]


def install() -> list[Undo]:
    """Patch the scalers: events "scaled" (scaler, outputs, result), and "scaler_step_begin", "scaler_step_end",
    "unscale_begin" and "unscale_end" (optimizer), "scaler_updated", and "scaler_refused" (optimizer) where it was stepped
    before and not updated since.

    ShardedGradScaler, which scales by itself, may be imported later: it is patched when the first one is made.
    """
    patched: dict[type, list[Undo]] = {}

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def make(self: Any, *args: Any, **kwargs: Any) -> None:
            _patch_sharded(patched)
            original(self, *args, **kwargs)

        return make

    _patch(GradScaler, patched)
    if not patched[GradScaler]:
        return []
    _patch(_sharded(), patched)
    made = patch_attribute(GradScaler, "__init__", wrap)

    def restore() -> None:
        for undo in (u for found in patched.values() for u in found):
            undo()

    return [restore, *([made] if made else [])]


def _sharded() -> Any:
    return getattr(sys.modules.get("torch.distributed.fsdp.sharded_grad_scaler"), "ShardedGradScaler", None)


def _patch(owner: Any, patched: dict[type, list[Undo]]) -> None:
    if owner is None or owner in patched:
        return
    wraps = {"scale": _wrap_scale, "step": _wrap_step, "unscale_": _wrap_unscale, "update": _wrap_update}
    undo = [patch_attribute(owner, name, wrap) for name, wrap in wraps.items()]
    patched[owner] = all_or_none(undo) if owner is GradScaler else [u for u in undo if u is not None]  # others inherit the rest


def _patch_sharded(patched: dict[type, list[Undo]]) -> None:
    """Patch the one that may have been imported since."""
    try:
        _patch(_sharded(), patched)
    except Exception as error:
        trouble("install", error)


def _tell_refusal(scaler: Any, optimizer: Any) -> None:
    """Say so where a scaler has refused to go on with an optimizer that it had stepped already."""
    try:
        if _stage(scaler, optimizer) == "STEPPED":
            notify("scaler_refused", optimizer)
    except Exception as error:
        trouble("scaler_refused", error)


def _wrap_scale(original: Any) -> Any:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, outputs, *args, **kwargs)
        if not torch.compiler.is_compiling() and listening() and self.is_enabled():
            notify("scaled", self, outputs, result)
        return result

    return scale


def _wrap_step(original: Any) -> Any:
    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not listening() or not self.is_enabled():
            return original(self, optimizer, *args, **kwargs)
        notify("scaler_step_begin", optimizer)
        finished = False
        try:
            result = original(self, optimizer, *args, **kwargs)
            finished = True
            return result
        finally:
            notify("scaler_step_end", optimizer, finished)
            if not finished:  # STEPPED is what it sets last: it was so before
                _tell_refusal(self, optimizer)

    return step


def _wrap_unscale(original: Any) -> Any:
    @functools.wraps(original)
    def unscale_(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not listening() or not self.is_enabled():
            return original(self, optimizer, *args, **kwargs)
        notify("unscale_begin", optimizer)
        try:
            return original(self, optimizer, *args, **kwargs)
        finally:
            notify("unscale_end", optimizer)
            _tell_refusal(self, optimizer)  # where it had stepped before, it has changed nothing

    return unscale_


def _wrap_update(original: Any) -> Any:
    @functools.wraps(original)
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not torch.compiler.is_compiling() and listening() and self.is_enabled():
            notify("scaler_updated")
        return result

    return update


@dataclass
class Scaling:
    """What has been multiplied by a loss scale and not yet gone through backward.

    Attributes:
        scaler: The scaler last used, None where none is.
        scale: A copy of its scale when the last loss was multiplied by it; None where the last backward had an unscaled loss.
    """

    scaler: Any = None
    scale: Number | None = None
    _scalers: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    _fresh: bool = False
    _results: list[tuple[weakref.ref[torch.Tensor], Root]] = field(default_factory=list)

    def add(self, scaler: Any, outputs: Any, result: Any) -> None:
        """A scaler multiplied `outputs`, a tensor or a sequence of them, which gave `result`."""
        self.scaler, self.scale, self._fresh = scaler, _copy(getattr(scaler, "_scale", None)), True
        self._scalers.add(scaler)
        self._results = [(reference, root) for reference, root in self._results if reference() is not None]
        before, after = (x if isinstance(x, (list, tuple)) else (x,) for x in (outputs, result))
        for root, tensor in zip(look_at(before), after, strict=False):
            if isinstance(tensor, torch.Tensor):
                self._results.append((weakref.ref(tensor), root))

    def unscaled(self, roots: Any) -> list[Root]:
        """The roots of a backward call that begins, as they were before scaling.

        A root that is the result of a scaling stands for what went in, exactly; one computed from such a result is divided.
        """
        tensors = roots if isinstance(roots, (tuple, list)) else (roots,)
        known = [self._before_scaling(tensor) for tensor in tensors]
        seen = look_at(roots)
        if not self._fresh and not any(known):
            self.scaler, self.scale = None, None
        self._fresh = False
        return [root or self._divided(other) for root, other in zip(known, seen, strict=True)]

    def still_on(self, optimizer: Any, watched: Iterable[int]) -> Number:
        """The factor that this optimizer's gradients still carry: 1 once `unscale_` has been called, by any scaler.

        NaN where it was called for an optimizer whose id is not among `watched`: that may be a wrapper around this one, or be
        this one before it is adopted.
        """
        if self.scaler is None or self.scale is None:
            return 1.0
        unscaled = {key for scaler in self._scalers for key in _states(scaler) if _stage(scaler, key) != "READY"}
        if id(optimizer) in unscaled:
            return 1.0
        return self.scale if unscaled.issubset(watched) else math.nan

    def _before_scaling(self, tensor: Any) -> Root | None:
        return next((root for reference, root in self._results if reference() is tensor), None)

    def _divided(self, root: Root) -> Root:
        if self.scale is not None and root.value is not None:
            root.value = root.value / self.scale
        return root


def carried_scale(optimizer: Any) -> Number:
    """The factor on the gradients that a fused optimizer was told to take off in the step in progress; 1 for none."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else _number(scale)


def found_inf(optimizer: Any) -> Number:
    """1 where a fused optimizer was told to skip the step in progress, else 0."""
    found = getattr(optimizer, "found_inf", None)
    return 0.0 if found is None else _number(found)


def _number(value: Any) -> Number:
    return value if isinstance(value, torch.Tensor) else float(value)


def _copy(scale: Any) -> Number | None:
    """A copy that an update of the scaler, which is made in place, does not reach."""
    return scale.detach().clone() if isinstance(scale, torch.Tensor) else None if scale is None else float(scale)


def _states(scaler: Any) -> dict[int, Any]:
    """What a scaler keeps of each optimizer since its last update, by id."""
    states: dict[int, Any] = getattr(scaler, "_per_optimizer_states", {})
    return states


def _stage(scaler: Any, optimizer: Any) -> str:
    """How far it has come with an optimizer, or the id of one: "READY", "UNSCALED" or "STEPPED"."""
    key = optimizer if isinstance(optimizer, int) else id(optimizer)
    return str(getattr(_states(scaler).get(key, {}).get("stage"), "name", "READY"))
