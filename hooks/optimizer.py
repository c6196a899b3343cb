"""Sees optimizer steps through torch's global step hooks, and reads the optimizer's state around them.

Global hooks see the optimizer inside a wrapper and one that was created later; `optimizer.step` itself is never replaced, for
a scheduler created afterwards inspects it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stabkit.hooks.dispatch import Undo, notify, remembered, trouble
from stabkit.hooks.distributed import Held, held, rank_and_world
from stabkit.hooks.formula import Moments, Variant
from stabkit.hooks.names import in_flat, role_of
from stabkit.hooks.roster import Roster
from stabkit.hooks.schedule import group_of
from stabkit.hooks.statistics import AdamStep, TensorState
from stabkit.hooks.transfer import on_host
from stabkit.runlog import Group, Layout, TensorInfo

__all__ = [
    "group_values",
    "install",
    "layout_of",
    "names_of",
    "states_of",
    "steps_of",
    "unwrap",
]

_NOWHERE: Mapping[int, tuple[Held, ...]] = {}
_NOTHING: Mapping[str, Any] = {}
_OPTIONS = ("amsgrad", "maximize", "decoupled_weight_decay")


def install() -> list[Undo]:
    """Register the hooks: events "step_begin" (optimizer, whether a closure was given) and "step_end" (optimizer)."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        try:
            if not _nested(optimizer):
                notify("step_begin", optimizer, any(callable(a) for a in (*args, *kwargs.values())))
        except Exception as error:
            trouble("step_begin", error)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        try:
            if not _nested(optimizer):
                notify("step_end", optimizer)
        except Exception as error:
            trouble("step_end", error)

    return [
        remembered(register_optimizer_step_pre_hook(before).remove),
        remembered(register_optimizer_step_post_hook(after).remove),
    ]


_STEP_WRAPPER = getattr(Optimizer.profile_hook_step(lambda self: None), "__code__", None)


def _nested(optimizer: Optimizer) -> bool:
    """Whether this hook belongs to a `super().step()` inside a step of the same optimizer.

    Asked of the call stack rather than of a counter: a step that raised leaves a counter wrong, the stack never lies.
    """
    frame: FrameType | None = sys._getframe(1)
    found = 0
    while frame is not None:
        if frame.f_code is _STEP_WRAPPER:
            found += 1
            if found > 1 and _first_argument(frame) is optimizer:
                return True
        frame = frame.f_back
    return False


def _first_argument(frame: Any) -> Any:
    args = frame.f_locals.get("args", ())
    return args[0] if args else frame.f_locals.get("self")


def unwrap(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper (such as Accelerate's) that keeps it as `.optimizer` or `._optimizer`."""
    for _ in range(4):
        if isinstance(optimizer, Optimizer) and "param_groups" in vars(optimizer):
            break
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inner is None:
            break
        optimizer = inner
    return optimizer


def states_of(optimizer: Optimizer, parameters: Iterable[torch.Tensor], moments: Moments | None) -> list[TensorState]:
    """What the statistics need of each parameter; moments are absent where it is not known where they are."""
    first, second, largest = (moments.first, moments.second, moments.largest) if moments else (None, None, None)
    if first is None:
        return [TensorState(p, p.grad, None, None) for p in parameters]
    states: list[TensorState] = []
    state_of: Callable[..., Any] = optimizer.state.get
    for p in parameters:
        get = state_of(p, _NOTHING).get
        m, v, top = get(first), get(second) if second else None, get(largest) if largest else None
        states.append(TensorState(p, p.grad, m, v, top))
    if states and not on_host(states[0].param):
        rates = {id(p): group.get("lr") for group in optimizer.param_groups for p in group["params"]}
        for state in states:
            state.count = _far(state_of(state.param, _NOTHING).get("step"))
            state.lr = _far(rates.get(id(state.param)))
    return states


def _far(number: Any) -> torch.Tensor | None:
    """A number that is on a device, or None."""
    return number if isinstance(number, torch.Tensor) and not on_host(number) else None


def steps_of(
    optimizer: Optimizer,
    roster: Roster,
    groups: Sequence[Group],
    counts: Sequence[float] | None = None,
    variant: Variant | None = None,
) -> list[AdamStep]:
    """The numbers each parameter's update is computed with; parameters of one group and count share an object.

    Args:
        optimizer: The optimizer.
        roster: Its parameters.
        groups: The hyperparameters of its groups.
        counts: The count of each tensor after the step; None before it.
        variant: The kind of Adam it is; None for torch's own.
    """
    shared: dict[tuple[int, float], AdamStep] = {}

    def step(key: tuple[int, float]) -> AdamStep:
        if key not in shared:
            g, count = key
            group, entry = groups[g], optimizer.param_groups[g]
            decoupled = type(optimizer) is torch.optim.AdamW or bool(entry.get("decoupled_weight_decay", False))
            ascend = bool(entry.get("maximize", False))
            rates = (group.lr, group.beta1, group.beta2, group.eps, group.weight_decay)
            found = AdamStep(*rates, max(count, 0.0), ascend, decoupled)
            shared[key] = variant.of(found) if variant else found
        return shared[key]

    if counts is None or len(set(counts)) == 1:  # as nearly always
        count = counts[0] if counts else 0.0
        return [s for g, length in enumerate(roster.lengths) for s in [step((g, count))] * length]
    return [step(key) for key in zip(roster.groups.tolist(), counts, strict=True)]


def names_of(optimizer: Optimizer, names: Mapping[int, tuple[str, ...]], index: int) -> dict[int, tuple[str, ...]]:
    """All names of each of an optimizer's parameters, by id; one outside the model is named after its place."""
    return {
        id(p): names.get(id(p), (f"optimizer{index}.group{g}.{i}",))
        for g, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
    }


def layout_of(
    optimizer: Optimizer,
    names: Mapping[int, tuple[str, ...]],
    roles: Mapping[int, str],
    index: int,
    missing: Mapping[str, str] = _NOTHING,
    flat: Mapping[int, tuple[Held, ...]] = _NOWHERE,
) -> Layout:
    """The layout of an optimizer's stream.

    Args:
        optimizer: The optimizer.
        names: All names of each of the model's parameters, by id, in the model's order.
        roles: The role of each of the model's parameters, by id.
        index: Which optimizer it is, for the names of parameters outside the model.
        missing: Columns that no step can have, with the reason.
        flat: What FSDP1 has flattened, by the id of the parameter.
    """
    tensors = []
    places = {key: place for place, key in enumerate(names)}
    rank, known_as = rank_and_world()[0], names_of(optimizer, names, index)
    for g, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            known = known_as[id(p)]
            dtype = str(p.dtype).removeprefix("torch.")
            for one in flat.get(id(p)) or (held(p, rank),):
                name = in_flat(known[0], one.name) if one.name else known[0]
                role = role_of(one.module, name, one.shape) if one.module else roles.get(id(p)) or role_of(None, "", one.shape)
                aliases = () if one.name else known[1:]
                kept = (p.requires_grad, one.replica, one.shards, places.get(id(p), -1))
                tensors.append(TensorInfo(name, one.shape, dtype, role, g, aliases, *kept))
    options = tuple((k, any(g.get(k) is True for g in optimizer.param_groups)) for k in _OPTIONS)
    name, implementation = type(optimizer).__name__, _implementation(optimizer)
    return Layout(tuple(tensors), len(optimizer.param_groups), name, implementation, options, missing)


def _implementation(optimizer: Optimizer) -> str:
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    if group.get("fused"):
        return "fused"
    if group.get("foreach") is None:
        return "default"
    return "foreach" if group["foreach"] else "single_tensor"


def group_values(optimizer: Optimizer) -> tuple[Group, ...]:
    """The hyperparameters of every group, as they are now."""
    return tuple(group_of(group) for group in optimizer.param_groups)
