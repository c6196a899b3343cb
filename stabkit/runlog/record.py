"""What passes from the recorders to the log: one `StepRecord` per attempted step, laid out by a `Layout`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stabkit.metric import Array

__all__ = ["GROUP_FIELDS", "STEP_FIELDS", "Group", "Layout", "StepRecord", "TensorInfo"]

NAN = math.nan


@dataclass(frozen=True)
class TensorInfo:
    """A parameter of the model, as the optimizer knows it.

    Attributes:
        name: Fully qualified name, such as "blocks.0.attn.weight"; "optimizer0.group0.3" for one outside the model.
        shape: Its shape; of a sharded one that of the whole.
        dtype: Such as "float32".
        role: "matrix", "vector", "embedding", "norm" or "bias".
        group: Index of its parameter group; None where no optimizer owns it.
        aliases: Other names of the same tensor (tied weights).
        trainable: Whether it asked for a gradient when the layout was made.
        replica: Which copy of the tensor this process holds, or a shard of: the lowest rank that holds any of that copy.
        shards: How many processes hold that copy together; more than one where it is sharded.
        place: Its place among the model's parameters, whose order an optimizer's groups need not keep; -1 where it has none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: str = "matrix"
    group: int | None = 0
    aliases: tuple[str, ...] = ()
    trainable: bool = True
    replica: int = 0
    shards: int = 1
    place: int = -1

    @property
    def numel(self) -> int:
        """Number of real elements: a complex one counts twice, as it does in every stored sum and count."""
        return math.prod(self.shape) * (2 if self.dtype.startswith("complex") else 1)


@dataclass(frozen=True)
class Layout:
    """What the columns of a stream stand for; a new one begins whenever a tensor or group is added or removed.

    Attributes:
        tensors: The tensors, in the order of the records' rows.
        groups: Number of parameter groups.
        optimizer: Class name of the optimizer.
        implementation: "foreach", "fused", "single_tensor" or "default".
        options: Such as (("amsgrad", False), ("maximize", False)).
        missing: Columns (or step metrics) that no record of this layout can hold, each with the reason, such as
            {"exp_avg_sumsq": "SGD keeps no moments"}. The reason is given to whoever asks for them.
    """

    tensors: tuple[TensorInfo, ...]
    groups: int = 1
    optimizer: str = ""
    implementation: str = ""
    options: tuple[tuple[str, bool], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` is its inverse."""
        return asdict(self) | {"missing": dict(self.missing)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layout:
        """The layout that `to_json` described. Raises KeyError, TypeError or ValueError on anything else."""
        tensors = tuple(_tensor(item) for item in data["tensors"])
        options = tuple((str(name), bool(value)) for name, value in data.get("options", ()))
        missing = {str(name): str(reason) for name, reason in dict(data.get("missing", {})).items()}
        optimizer, implementation = str(data.get("optimizer", "")), str(data.get("implementation", ""))
        return cls(tensors, int(data["groups"]), optimizer, implementation, options, missing)


def _tensor(data: Mapping[str, Any]) -> TensorInfo:
    """A tensor as JSON gives it back. A layout that was tampered with must fail here, not where a rule comes to use it."""
    shape = tuple(data["shape"])
    if not all(isinstance(side, int) and 0 <= side < 2**63 for side in shape):
        raise ValueError(f"no shape: {data['shape']!r:.40}")
    group, aliases = data.get("group", 0), tuple(str(name) for name in data.get("aliases", ()))
    text = {name: str(data[name]) for name in ("dtype", "role") if name in data}
    numbers = {name: int(data[name]) for name in ("replica", "shards", "place") if name in data}
    group = None if group is None else int(group)
    return TensorInfo(str(data["name"]), shape, group=group, aliases=aliases, trainable=bool(data.get("trainable", True)),
                      **text, **numbers)  # type: ignore[arg-type]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The hyperparameters a parameter group used in one step; NaN where the optimizer has none of that name."""

    lr: float = NAN
    weight_decay: float = NAN
    beta1: float = NAN
    beta2: float = NAN
    eps: float = NAN


@dataclass
class StepRecord:
    """One attempted optimizer step. Names as in `stabkit.metric`; NaN is missing."""

    step: int
    attempt: int
    layout: int
    time: float = NAN
    applied_steps: int = -1
    skipped: int = 0
    backward_count: int = 0
    loss_reduction: int = 0
    loss: float = NAN
    loss_sum: float = NAN
    grad_norm: float = NAN
    grad_norm_used: float = NAN
    clip_max_norm: float = NAN
    clip_value: float = NAN
    clip_coefficient: float = NAN
    loss_scale: float = NAN
    clip_scale: float = NAN
    clips_before_backward: int = 0
    clips_between_backwards: int = 0
    clips_after_backward: int = 0
    kept_gradients: int = 0
    dropped_backwards: int = 0
    undivided_losses: int = 0
    loss_kinds: int = 0
    step_outside_scaler: int = 0
    scaler_updates: int = 0
    scheduler_steps_before_backward: int = 0
    scheduler_steps_between_backwards: int = 0
    scheduler_steps_after_backward: int = 0
    weight_norm: float = NAN
    update_norm: float = NAN
    applied_update_norm: float = NAN
    groups: tuple[Group, ...] = ()
    tensors: Array | None = field(default=None, repr=False)
    """Columns [tensors, columns] in the order of `metric.TENSOR_COLUMNS`; None where this step was not measured."""


STEP_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(StepRecord) if f.name not in ("groups", "tensors"))
GROUP_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(Group))
