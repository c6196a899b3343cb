"""Sees the forward pass, where it is asked to: how large the logits of every attention are, and those of the output.

The functions that make logits are patched while somebody wants to know; no module of the user's is touched. Whose an attention
is, is told by the graph of its queries: the weight they were made with names it.

Left alone is what is compiled, for there a look would become a part of the graphs; what computes no gradients; what a model in
evaluation mode does. Everything kept is an extremum: a checkpoint's second forward pass, or a second micro-batch, counts once.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from stabkit.hooks.dispatch import Undo, listening, patch_attribute
from stabkit.hooks.logits import attention_bound, heads_of, log_partition, plain
from stabkit.hooks.names import named_parameters
from stabkit.hooks.origin import Compiled, parameters_behind

__all__ = ["ATTENTION", "OUTPUT", "Forward"]

ATTENTION, OUTPUT = "attention_logit_bound", "output_log_partition"

COMPILED = "the model is compiled: a look would change its graphs"
_lock = threading.RLock()
_seeing: tuple[Forward, ...] = ()
_undo: list[Undo] = []

Measure = Callable[[], torch.Tensor]


class Forward:
    """The forward passes of one model between two steps.

    Args:
        model: A module or a dict of modules.
        every: Look at every n-th step.
        note: Puts a note into the log.

    Attributes:
        spent: Seconds that the looks since the last step took on the training's thread.
    """

    def __init__(self, model: Any, every: int, note: Callable[..., None]) -> None:
        self.spent = 0.0
        self._model, self._every, self._note = model, every, note
        self._names = named_parameters(model)
        self._strange: set[int] = set()  # ids of parameters that are another model's
        self._wanted = True
        self._seen: dict[str, torch.Tensor] = {}

    def attach(self) -> None:
        """Begin to look, unless the model is compiled."""
        global _seeing
        if any(_is_compiled(part) for module in self._modules() for part in module.modules()):
            self._note("not_looked_at", what="forward", why=COMPILED)
            return
        with _lock:
            if not _seeing:
                _undo.extend(_install())
            _seeing = (*_seeing, self)

    def detach(self) -> None:
        """Look no more and keep nothing; the last to leave restores torch."""
        global _seeing
        with _lock:
            _seeing = tuple(other for other in _seeing if other is not self)
            while not _seeing and _undo:
                _undo.pop()()
        self._model, self._names, self._seen = {}, {}, {}

    def take(self, step: int, wanted: bool = True) -> dict[str, torch.Tensor]:
        """What was seen until the end of a step: number by name. The next begins, and may be `wanted` or not."""
        seen, self._seen, self.spent = self._seen, {}, 0.0
        self._wanted = wanted and step % self._every == 0
        return seen

    def attended(self, query: torch.Tensor, measure: Measure) -> None:
        """Somebody attends with these queries."""
        if name := self._behind(query):
            self._keep(f"{ATTENTION}/{name}", measure(), torch.maximum)

    def put_out(self, logits: torch.Tensor, measure: Measure) -> None:
        """A loss is computed from these logits."""
        if self._behind(logits):
            self._keep(OUTPUT, measure(), _farther)

    def failed(self, error: Exception) -> None:
        """The model is compiled after all, or something of ours went wrong: look no more."""
        self.detach()
        why = COMPILED if isinstance(error, Compiled) else f"{type(error).__name__}: {error}"
        self._note("not_looked_at", what="forward", why=why)

    def _behind(self, tensor: torch.Tensor) -> str | None:
        """The name of the weight that a tensor was made with, if it is this model's and the model trains."""
        if not (self._wanted and any(module.training for module in self._modules())):
            return None
        for parameter in parameters_behind(tensor):
            if id(parameter) not in self._names and id(parameter) not in self._strange:
                self._names = named_parameters(self._model)  # it may have been put in just now, or whole again (FSDP2)
                self._strange |= {id(parameter)} - self._names.keys()
            if id(parameter) in self._names:
                return self._names[id(parameter)][0]
        return None

    def _keep(
        self, name: str, value: torch.Tensor, more: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        before = self._seen.get(name)
        self._seen[name] = value if before is None or before.device != value.device else more(before, value)

    def _modules(self) -> list[nn.Module]:
        return list(self._model.values()) if isinstance(self._model, Mapping) else [self._model]


def _install() -> list[Undo]:
    functional, natives = torch.nn.functional, torch._C._nn
    undo = [
        patch_attribute(functional, "scaled_dot_product_attention", _wrap_attention),
        patch_attribute(functional, "_in_projection_packed", _wrap_projection),
        patch_attribute(functional, "_in_projection", _wrap_projection),
        patch_attribute(natives, "cross_entropy_loss", _wrap_loss),  # what functional.cross_entropy calls
        _known_to_scripts(functional.scaled_dot_product_attention),
        _known_to_scripts(natives.cross_entropy_loss),
    ]
    return [one for one in undo if one]


def _wrap_attention(original: Any) -> Any:
    @functools.wraps(original)
    def attention(query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and _can_be_seen(query, key):
            scale = kwargs.get("scale")
            _tell(lambda one: one.attended(query, lambda: attention_bound(query, key, scale)))
        return original(query, key, *args, **kwargs)

    return attention


def _wrap_projection(original: Any) -> Any:
    """`nn.MultiheadAttention` that also returns its weights attends by hand: its queries and keys are known from here."""

    @functools.wraps(original)
    def projection(*args: Any, **kwargs: Any) -> Any:
        projected = original(*args, **kwargs)
        if not torch.compiler.is_compiling() and _can_be_seen(*projected[:2]):
            caller = sys._getframe(1).f_locals  # of torch's multi_head_attention_forward
            if caller.get("need_weights") and (heads := caller.get("num_heads")):
                query, key = projected[:2]
                bound = lambda: attention_bound(heads_of(query, heads), heads_of(key, heads))  # noqa: E731
                _tell(lambda one: one.attended(query, bound))
        return projected

    projection.__script_if_tracing_wrapper = True  # type: ignore[attr-defined]  # torch.jit.script then compiles the original
    projection.__original_fn = original  # type: ignore[attr-defined]
    return projection


def _wrap_loss(original: Any) -> Any:
    @functools.wraps(original)
    def cross_entropy_loss(
        logits: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100, *args: Any, **kwargs: Any
    ) -> Any:
        if not torch.compiler.is_compiling() and _can_be_seen(logits):
            _tell(lambda one: one.put_out(logits, lambda: log_partition(logits, target, ignore_index)))
        return original(logits, target, weight, reduction, ignore_index, *args, **kwargs)

    return cross_entropy_loss


def _can_be_seen(*tensors: Any) -> bool:
    """Whether these are numbers of a pass through which gradients will flow."""
    return torch.is_grad_enabled() and all(map(plain, tensors)) and tensors[0].requires_grad and listening()


def _tell(act: Callable[[Forward], None]) -> None:
    """Let everybody look. Nothing raised in here reaches the user's training, nor a mode of theirs what is computed."""
    for one in _seeing:
        begin = time.perf_counter()
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                act(one)
        except Exception as error:
            one.failed(error)
        one.spent += time.perf_counter() - begin


def _farther(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of two numbers the one that lies farther from 0; the other of one that is NaN."""
    return torch.where(one.isnan() | (other.abs() > one.abs()), other, one)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _known_to_scripts(wrapper: Any) -> Undo | None:
    """Tell torch.jit.script that a wrapper is the operation it wraps. The table is private, and may be missing."""
    try:
        table = torch.jit._builtins._get_builtin_table()
        table[id(wrapper)] = table[id(wrapper.__wrapped__)]
    except (AttributeError, KeyError):
        return None
    return lambda: table.pop(id(wrapper), None)
