"""Sees optimizer steps through torch's global step hooks, and reads the optimizer's state around them.

Global hooks see the optimizer inside a wrapper and one that was created later; `optimizer.step` itself is never replaced, for
a scheduler created afterwards inspects it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stabkit.hooks.dispatch import Undo, notify
from stabkit.hooks.schedule import group_of
from stabkit.hooks.statistics import AdamStep, TensorState
from stabkit.runlog import Group, Layout, TensorInfo

__all__ = ["count_of", "has_known_formula", "install", "layout_of", "parameters_of", "states_of", "unwrap"]


def install() -> list[Undo]:
    """Register the hooks: events "step_begin" (optimizer, whether a closure was given) and "step_end" (optimizer)."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _nested(optimizer):
            notify("step_begin", optimizer, any(callable(a) for a in (*args, *kwargs.values())))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _nested(optimizer):
            notify("step_end", optimizer)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    return [handle.remove for handle in handles]


_STEP_WRAPPER = getattr(Optimizer.profile_hook_step(lambda self: None), "__code__", None)


def _nested(optimizer: Optimizer) -> bool:
    """Whether this hook belongs to a `super().step()` inside a step of the same optimizer.

    Asked of the call stack rather than of a counter: a step that raised leaves a counter wrong, the stack never lies.
    """
    frame, found = sys._getframe(1), 0
    while frame is not None:
        if frame.f_code is _STEP_WRAPPER:
            found += 1
            if found > 1 and _first_argument(frame) is optimizer:
                return True
        frame = frame.f_back  # type: ignore[assignment]
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


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """Every parameter of every group, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def has_known_formula(optimizer: Optimizer) -> bool:
    """Whether the update follows from p, m, v: exactly torch's AdamW or Adam, with every key they read in each group."""
    keys = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"}
    return type(optimizer) in (torch.optim.AdamW, torch.optim.Adam) and all(keys <= set(g) for g in optimizer.param_groups)


def count_of(optimizer: Optimizer) -> int:
    """The optimizer's own count of steps: the largest of its tensors' counts, 0 before the first, -1 where it keeps none."""
    counts = [_count(state) for state in optimizer.state.values() if "step" in state]
    if not optimizer.state:
        return 0
    return max(counts, default=-1)


def _count(state: Mapping[str, Any]) -> int:
    step = state.get("step", -1)
    if isinstance(step, torch.Tensor) and step.device.type != "cpu":  # reading it would make the training wait
        return -1
    return int(step)


def states_of(
    optimizer: Optimizer, parameters: Iterable[torch.Tensor], groups: Iterable[Group], maximize: Iterable[bool]
) -> tuple[list[TensorState], list[AdamStep]]:
    """What the statistics need of each parameter: its tensors, and the numbers its update was computed with.

    Args:
        optimizer: One whose formula is known; of another, moments are absent.
        parameters: The tensors to measure, each with a gradient.
        groups: The hyperparameters of each tensor's group.
        maximize: Whether each tensor's group ascends.
    """
    known = has_known_formula(optimizer)
    coupled = not (type(optimizer) is torch.optim.AdamW or optimizer.defaults.get("decoupled_weight_decay", False))
    states, steps = [], []
    for p, group, ascend in zip(parameters, groups, maximize, strict=True):
        state: Mapping[str, Any] = optimizer.state.get(p, {}) if known else {}
        states.append(
            TensorState(p, p.grad, state.get("exp_avg"), state.get("exp_avg_sq"), state.get("max_exp_avg_sq"))
        )
        count = _count(state) if state else 0
        steps.append(
            AdamStep(group.lr, group.beta1, group.beta2, group.eps, group.weight_decay, count, ascend, not coupled)
        )
    return states, steps


def layout_of(optimizer: Optimizer, names: Mapping[int, tuple[str, ...]], roles: Mapping[int, str], index: int) -> Layout:
    """The layout of an optimizer's stream.

    Args:
        optimizer: The optimizer.
        names: All names of each of the model's parameters, by id.
        roles: The role of each of the model's parameters, by id.
        index: Which optimizer it is, for the names of parameters outside the model.
    """
    tensors = []
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            known = names.get(id(p), (f"optimizer{index}.group{g}.{i}",))
            dtype = str(p.dtype).removeprefix("torch.")
            role = roles.get(id(p), "matrix" if p.dim() > 1 else "vector")
            tensors.append(TensorInfo(known[0], tuple(p.shape), dtype, role, g, known[1:]))
    options = tuple((k, any(g.get(k) is True for g in optimizer.param_groups)) for k in ("amsgrad", "maximize"))
    return Layout(
        tuple(tensors), len(optimizer.param_groups), type(optimizer).__name__, _implementation(optimizer), options
    )


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
