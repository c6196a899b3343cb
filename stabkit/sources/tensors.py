"""Columns that belong to a tensor each: "grad_norm/layers.0.weight" and its kin become a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stabkit.metric import Array
from stabkit.runlog import TensorInfo
from stabkit.runlog.stream import Steps
from stabkit.sources.collect import Collected
from stabkit.sources.columns import Taken

__all__ = ["TensorColumns", "tensor_columns"]

_NORM = r"(?:l2_?norm|2\.0_norm|2_norm|norms?)"
_KINDS: tuple[tuple[str, str], ...] = (
    ("grad_sumsq", rf"(?:grads?|gradients?)[_/.]{_NORM}[/.]|{_NORM}/(?:grads?|gradients?)/"),
    ("weight_sumsq", rf"(?:params?|parameters?|weights?)[_/.]{_NORM}[/.]|{_NORM}/(?:params?|weights?)/"),
    ("update_sumsq", rf"(?:updates?)[_/.]{_NORM}[/.]|{_NORM}/updates?/"),
    ("exp_avg_sumsq", rf"(?:exp_avg|moment)[_/.]{_NORM}[/.]|{_NORM}/moments?/"),
)
"""Stored column, and what stands before the tensor's name in those of its norm."""

_TENSOR = re.compile(r".*(?:\.|\A)(?:weight|bias|kernel|embedding|scale|gamma|beta|\w*(?:weight|bias|_proj|embed\w*))\Z")
_LONGEST_NAME = 300
_ROLES = (("bias", r"bias\Z"), ("norm", r"norm|(?:^|[._])ln\d*|layernorm|bn\d*[._]"), ("embedding", r"emb|wte|wpe"))


@dataclass(frozen=True)
class TensorColumns:
    """The columns of tensors.

    Attributes:
        infos: The tensors.
        kinds: The column of each: by stored column, then by tensor.
    """

    infos: tuple[TensorInfo, ...]
    kinds: Mapping[str, Mapping[str, str]]

    @property
    def names(self) -> set[str]:
        """The columns of the log that are accounted for."""
        return {column for columns in self.kinds.values() for column in columns.values()}

    def read(self, points: Callable[[str], tuple[Steps, Array]]) -> tuple[Steps, dict[str, Array]]:
        """(steps [k], stored columns [k, tensors])."""
        found = {(kind, tensor): points(name) for kind, names in self.kinds.items() for tensor, name in names.items()}
        steps = np.unique(np.concatenate([np.empty(0, np.int64), *(at for at, _ in found.values())]))
        columns = {kind: np.full((len(steps), len(self.infos)), np.nan) for kind in self.kinds}
        place = {info.name: index for index, info in enumerate(self.infos)}
        with np.errstate(over="ignore"):
            for (kind, tensor), (at, values) in found.items():
                columns[kind][np.searchsorted(steps, at), place[tensor]] = values**2
        return steps, columns


def tensor_columns(collected: Collected, taken: Taken) -> TensorColumns:
    """The columns that are clearly norms of tensors: by the word "norm", by a parameter's name, and by no negative value."""
    free = [name for name, column in collected.columns.items() if len(column.rows) and len(name) <= _LONGEST_NAME]
    free = [name for name in free if name not in taken.quantities.values()]
    kinds: dict[str, dict[str, str]] = {}
    for name in free:
        for kind, before in _KINDS:
            match = re.fullmatch(rf"(?:.*/)?(?:{before})(?P<tensor>.+)", name)
            if match and _TENSOR.match(match["tensor"]) and not np.any(collected.columns[name].values < 0):
                kinds.setdefault(kind, {})[match["tensor"]] = name
                break
    tensors = dict.fromkeys(tensor for names in kinds.values() for tensor in names)
    return TensorColumns(tuple(TensorInfo(tensor, (), "", _role(tensor)) for tensor in tensors), kinds)


def _role(tensor: str) -> str:
    return next((role for role, pattern in _ROLES if re.search(pattern, tensor)), "matrix")
