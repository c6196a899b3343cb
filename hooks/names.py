"""What the model calls its parameters, and what each is there for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["in_flat", "named_parameters", "parameters_in", "role_of", "roles"]

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
    nn.modules.instancenorm._InstanceNorm,
)
_PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.")


def named_parameters(model: Any) -> dict[int, tuple[str, ...]]:
    """Every name of each parameter, by id: tied weights have several. Wrappers (DDP, compile) leave no trace in a name.

    Args:
        model: A module, or a dict of modules whose keys become prefixes.
    """
    names: dict[int, tuple[str, ...]] = {}
    for prefix, module in _modules(model):
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names[id(parameter)] = (*names.get(id(parameter), ()), prefix + _clean(name, module))
    return names


def parameters_in(model: Any) -> list[torch.Tensor]:
    """Every parameter once."""
    found = {id(p): p for _, module in _modules(model) for p in module.parameters()}
    return list(found.values())


def roles(model: Any) -> dict[int, str]:
    """The role of each parameter, by id: "embedding", "norm", "bias", "matrix" or "vector"."""
    found: dict[int, str] = {}
    for _, module in _modules(model):
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                shape = (0, 0) if is_lazy(parameter) else tuple(parameter.shape)
                found.setdefault(id(parameter), role_of(part, name, shape))
    return found


def _modules(model: Any) -> list[tuple[str, nn.Module]]:
    if isinstance(model, Mapping):
        return [(f"{key}.", module) for key, module in model.items()]
    return [("", model)]


def in_flat(flat: str, name: str) -> str:
    """The name of a tensor inside a flat parameter of FSDP1 that is called "blocks.0._flat_param"."""
    for prefix in _PREFIXES:
        name = name.replace(prefix, "")
    return flat.removesuffix("_flat_param") + name


def role_of(module: nn.Module | None, name: str, shape: tuple[int, ...]) -> str:
    """The role of a parameter by the module it belongs to, None where that is not known, its name and its shape."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(module, _NORMS) or type(module).__name__.endswith("Norm"):
        return "norm"
    if name.endswith("bias"):
        return "bias"
    return "matrix" if len(shape) > 1 else "vector"


def _clean(name: str, module: nn.Module) -> str:
    for prefix in _PREFIXES:
        name = name.replace(prefix, "")
    if type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
        name = name.removeprefix("module.")
    return name
