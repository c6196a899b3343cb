"""Several processes: who this one is, and what it holds of each tensor. Nothing in here starts a collective or waits for one.

A DTensor (FSDP2, tensor parallel) is read through its local shard; arithmetic on the DTensor itself could communicate. FSDP1
keeps flat pieces of parameters, or one flat parameter for several; what is where stands in its handles. Private parts of torch
are looked up here and nowhere else: `_local_tensor` of a DTensor, `_get_fsdp_state` of an FSDP2 module and `_handle` of an
FSDP1 module. Where a version has no such part, sharded tensors count as not measured, and no norm of theirs is told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "Held",
    "Pending",
    "cuts",
    "held",
    "held_of",
    "is_plain",
    "job",
    "local",
    "local_like",
    "rank_and_world",
    "version",
    "whole",
]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_SAMPLED = 8
_LOOPBACK = ("", "localhost", "127.0.0.1", "::1")


def rank_and_world() -> tuple[int, int]:
    """Rank and number of the processes that train together: as torch.distributed knows it, else as torchrun announces it."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        return 0, 1
    return (rank, world) if 0 <= rank < world else (0, 1)


def job() -> str:
    """What all processes of a job have in common and those of another live job do not, as far as can be told without asking.

    Two live jobs on a host cannot have one master port. Without one, processes of one job have one parent.
    """
    port, address = os.environ.get("MASTER_PORT", ""), os.environ.get("MASTER_ADDR", "")
    if not port:
        return f"{socket.gethostname()}:{os.getppid()}"
    host = socket.gethostname() if address in _LOOPBACK else address
    return ":".join((host, port, os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "")))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all there is of it: no DTensor or other wrapper."""
    return type(tensor) in _PLAIN


def local(tensor: torch.Tensor) -> torch.Tensor | None:
    """What this process holds of a tensor; None where reading it would wait for a communication in flight."""
    if type(tensor) in _PLAIN:
        return tensor
    own = getattr(tensor, "_local_tensor", tensor)
    if hasattr(own, "elem") and hasattr(own, "completed"):  # AsyncCollectiveTensor
        own = own.elem if own.completed else None
    return own


def local_like(tensor: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor | None:
    """The local shard of a parameter's gradient or moment.

    None for one that is distributed in another way than the parameter (a sum still to be made): it cannot be read here.
    """
    if tensor is None or (type(tensor) in _PLAIN and type(parameter) in _PLAIN):
        return tensor
    own, shard = local(tensor), local(parameter)
    alike = getattr(tensor, "placements", None) == getattr(parameter, "placements", None)
    return own if own is not None and shard is not None and alike and own.shape == shard.shape else None


def whole(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor as every process has it: itself, or the local part of a replicated DTensor; None of any other kind."""
    if type(tensor) in _PLAIN or not hasattr(tensor, "_local_tensor"):
        return tensor
    placements = getattr(tensor, "placements", ())
    return local(tensor) if placements and all(p.is_replicate() for p in placements) else None


def version(grad: torch.Tensor) -> int:
    """What changes whenever a gradient is written to.

    The version of a plain tensor. A DTensor is also accumulated into through its shard, and torch._foreach functions change it
    without counting: there a few elements are looked at too, where that makes nobody wait.
    """
    if type(grad) is torch.Tensor:
        return grad._version
    own = local(grad)
    if own is None or own is grad:
        return grad._version
    some: list[float] = []
    if own.is_cpu and own.numel() and own.layout is torch.strided:
        some = own.detach().reshape(-1)[:: max(1, own.numel() // _SAMPLED)].tolist()
    return hash((grad._version, own._version, str(some)))


@dataclass(frozen=True)
class Held:
    """What this process holds of one tensor of the model.

    Attributes:
        shape: Shape of the whole tensor.
        replica: The lowest rank that holds any of the same copy.
        shards: How many ranks hold that copy together.
        name: Its name below that of the parameter, where one flat parameter holds several tensors; else "".
        module: The module it belongs to, where that is known.
    """

    shape: tuple[int, ...]
    replica: int = 0
    shards: int = 1
    name: str = ""
    module: Any = None


def held_of(model: Any) -> Mapping[int, tuple[Held, ...]]:
    """What this process holds of the tensors that FSDP1 has flattened, by the id of the parameter."""
    found: dict[int, tuple[Held, ...]] = {}
    rank = rank_and_world()[0]
    for module in _modules(model):
        flat = getattr(handle := vars(module).get("_handle"), "flat_param", None)
        if flat is None:
            continue
        ranks = _ranks_of(handle, rank)
        infos = getattr(flat, "_param_infos", ())
        several = tuple(
            Held(tuple(shape), min(ranks), len(ranks), name, getattr(info, "module", None))
            for name, shape, info in zip(flat._fqns, flat._shapes, infos, strict=True)
        )
        found[id(flat)] = several
        for p, one in zip(getattr(flat, "_params", None) or (), several, strict=False):  # use_orig_params=True
            found[id(p)] = (Held(one.shape, one.replica, one.shards, "", one.module),)
    return found


def _ranks_of(handle: Any, rank: int) -> Sequence[int]:
    """The ranks over which a handle's flat parameter is sharded."""
    if not getattr(handle, "uses_sharded_strategy", True):
        return [rank]
    return torch.distributed.get_process_group_ranks(handle.process_group)


def held(parameter: torch.Tensor, rank: int) -> Held:
    """What this process holds of a parameter that FSDP1 has not flattened."""
    shape, mesh = tuple(parameter.shape), getattr(parameter, "device_mesh", None)
    coordinate = mesh.get_coordinate() if mesh is not None else None
    if mesh is None or coordinate is None:
        return Held(shape, rank)
    placements = parameter.placements  # type: ignore[attr-defined]
    along = tuple(c if p.is_replicate() else slice(None) for p, c in zip(placements, coordinate, strict=True))
    ranks = mesh.mesh[along]
    return Held(shape, int(ranks.min()), ranks.numel())


def cuts(parameter: torch.Tensor) -> list[slice] | None:
    """Where the tensors of a flat parameter lie in this process's piece of it; None for a parameter that is one tensor."""
    numels = getattr(parameter, "_numels", None)
    if numels is None or not hasattr(parameter, "_fqns"):
        return None
    infos = getattr(parameter, "_shard_param_infos", None)
    if infos is None:
        ends = torch.tensor(numels, device="cpu").cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, numels, strict=True)]
    return [slice(i.offset_in_shard, i.offset_in_shard + i.numel_in_shard) if i.in_shard else slice(0, 0) for i in infos]


class Pending:
    """Gradients that FSDP2 keeps back: with `set_requires_gradient_sync(False)` a backward leaves no trace in `.grad`.

    Args:
        model: A module or a dict of modules.
    """

    def __init__(self, model: Any) -> None:
        self._params = [p for module in _modules(model) for p in _fsdp_params(module)]

    def of(self, parameters: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
        """Signatures of what is kept back of these parameters; empty where nothing is."""
        if not self._params:
            return ()
        wanted = {id(p) for p in parameters}
        kept = [
            grad
            for p in self._params
            if id(p.sharded_param) in wanted
            for grad in (p.unsharded_accumulated_grad, getattr(getattr(p, "_unsharded_param", None), "grad", None))
            if grad is not None
        ]
        return tuple((id(grad), version(grad)) for grad in kept)


def _fsdp_params(module: Any) -> list[Any]:
    state = getattr(module, "_get_fsdp_state", None)
    try:
        groups = state() if state else None
    except Exception:  # of a module that was taken out of FSDP again
        return []
    found = getattr(groups, "_fsdp_param_groups", None) or [getattr(groups, "_fsdp_param_group", None)]
    params = [p for group in found for p in getattr(group, "fsdp_params", ())]
    return [p for p in params if hasattr(p, "sharded_param") and hasattr(p, "unsharded_accumulated_grad")]


def _modules(model: Any) -> list[torch.nn.Module]:
    roots = model.values() if isinstance(model, Mapping) else [model]
    return list({id(m): m for root in roots for m in root.modules()}.values())
