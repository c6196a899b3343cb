"""The parameters of an optimizer, and what this process holds of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, is_

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.distributed import cuts, is_plain, local, local_like
from stabkit.hooks.statistics import TensorState
from stabkit.hooks.statistics.native import finder
from stabkit.metric import Array

__all__ = ["Left", "Roster", "parameters_of"]

_ONE = [None]
_TRAINABLE = attrgetter("requires_grad")


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """Every parameter of every group, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


@dataclass(frozen=True)
class Left:
    """What a measured step left behind.

    Attributes:
        counts: The optimizer's count of steps of each tensor then.
        weights: Of each tensor the sum of squares.
        momenta: Of its first moment.
    """

    counts: Array
    weights: Array
    momenta: Array


class Roster:
    """The parameters of an optimizer with what seldom changes about them.

    Attributes:
        parameters: Every parameter of every group, in order.
        owners: The place of the parameter of each tensor: its own, but for the tensors of a flat parameter of FSDP1.
        lengths: The number of tensors of each group.
        trainable: Whether each parameter asks for a gradient.
        groups: The group of each tensor.
        readable: Whether all of them lie where tensors are measured: on the CPU or on a CUDA device.
        coarse: Places of the tensors of 16 bits, whose updates may be rounded away.
        squares: Of each tensor the sum of squares when last measured, NaN before.
        left: How the last step left the tensors, where C has measured them.
        plain: Whether each parameter is an ordinary tensor, and one tensor.
        sharded: Whether this process holds a part of any tensor only.
    """

    sharded = False

    def __init__(self, optimizer: Optimizer) -> None:
        self.parameters = parameters_of(optimizer)
        self._counts = [len(group["params"]) for group in optimizer.param_groups]
        self._cuts = {i: found for i, p in enumerate(self.parameters) if (found := cuts(p)) is not None}
        many = [len(self._cuts.get(i, _ONE)) for i in range(len(self.parameters))]
        self.owners: list[int] = np.repeat(np.arange(len(many)), many).tolist()
        ends = np.cumsum([0, *self._counts])
        self.lengths = [sum(many[begin:end]) for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
        self.plain = not self._cuts and all(is_plain(p) for p in self.parameters)
        self.trainable = [p.requires_grad for p in self.parameters]
        self.groups = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self.readable = all(p.is_cpu or p.is_cuda for p in self.parameters)
        self.coarse = [i for i, at in enumerate(self.owners) if self.parameters[at].dtype in (torch.bfloat16, torch.float16)]
        self.squares: Array = np.full(len(self.owners), np.nan)
        self.left: Left | None = None

    @cached_property
    def sizes(self) -> Array:
        """The number of elements held here of each tensor, asked for when they step: a lazy layer's have none before."""
        return np.array([state.param.numel() for state in self.held(self.bare())], dtype=np.float64)

    def holds(self, optimizer: Optimizer, fully: bool) -> bool:
        """Whether it is still true: `fully`, or as far as the list of parameters goes."""
        groups = optimizer.param_groups
        if [len(group["params"]) for group in groups] != self._counts:
            return False
        if finder and type(groups) is list:
            known: bool | None = finder.same(groups, self.parameters, self.trainable if fully else None)
            if known is not None:
                return known
        now = parameters_of(optimizer)  # comparing tensors themselves would compute
        return all(map(is_, now, self.parameters)) and (not fully or [*map(_TRAINABLE, now)] == self.trainable)

    def bare(self) -> list[TensorState]:
        """The parameters with nothing that belongs to them."""
        return [TensorState(p, None, None, None) for p in self.parameters]

    def held(self, states: list[TensorState]) -> list[TensorState]:
        """What this process holds of each tensor, from the states of the parameters: mostly the very same.

        Of a sharded parameter that is its local shard, of a flat one a view for each of the tensors in it.
        """
        if self.plain:
            return states
        found: list[TensorState] = []
        for i, state in enumerate(states):
            p, shard = state.param, local(state.param)
            belongings = [local_like(t, p) for t in (state.grad, state.exp_avg, state.exp_avg_sq, state.max_exp_avg_sq)]
            for cut in self._cuts.get(i, _ONE):
                found.append(TensorState(*(t if cut is None or t is None else t[cut] for t in (shard, *belongings))))  # type: ignore[arg-type]
                found[-1].count, found[-1].lr = state.count, state.lr
        return found

    def unread(self) -> list[int]:
        """Places of the tensors that have a gradient which cannot be read here."""
        if self.plain:
            return []
        missing = {i for i, p in enumerate(self.parameters) if p.grad is not None and local_like(p.grad, p) is None}
        return [row for row, i in enumerate(self.owners) if i in missing]
