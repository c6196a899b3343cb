"""The vocabulary: every recorded quantity with its unit, its scope and its exact definition.

A quantity may be absent from a log. If it is present under a name listed here, it means exactly what is said here. g is the
unscaled gradient; m and v are `exp_avg` and `exp_avg_sq` after the step; v̂ = v / (1 - beta2^t).

The log stores *columns*: sums, counts and extrema, which shards and ranks can merge after the fact. What people read, the
*metrics*, is derived from the columns here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORWARD_METRICS",
    "METRICS",
    "STEP_METRICS",
    "TENSOR_COLUMNS",
    "TENSOR_METRICS",
    "WIRING_METRICS",
    "Array",
    "Column",
    "Metric",
    "Scope",
]

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
Scope = str  # "step", "group", "tensor" or "layer"


@dataclass(frozen=True)
class Column:
    """A stored number per tensor and step, and how shards of one tensor merge: by "sum", "max" or "min"."""

    name: str
    merge: str
    definition: str


TENSOR_COLUMNS: tuple[Column, ...] = (
    Column("weight_sumsq", "sum", "sum of p^2 before the step"),
    Column("momentum_dot", "sum", "sum of g_used * m before the step"),
    Column("momentum_sumsq", "sum", "sum of m^2 before the step"),
    Column("grad_used_sumsq", "sum", "sum of g^2 as the optimizer consumed it"),
    Column("grad_absmax", "max", "max |g| over finite elements, as used"),
    Column("grad_nonfinite", "sum", "count of NaN and infinite elements of g, as used"),
    Column("grad_zeros", "sum", "count of exact zeros of g, as used"),
    Column("exp_avg_sumsq", "sum", "sum of m^2"),
    Column("exp_avg_sq_sum", "sum", "sum of v-hat"),
    Column("exp_avg_sq_min", "min", "min of v-hat"),
    Column("exp_avg_sq_max", "max", "max of v-hat"),
    Column("rms_sum", "sum", "sum of g^2 / max(v-hat, eps^2), with the denominator the optimizer used"),
    Column("eps_count", "sum", "count of elements with v > 0 and sqrt(v-hat) < 10 eps"),
    Column("weight_absmax", "max", "max |p| over finite elements, after the step"),
    Column("weight_nonfinite", "sum", "count of NaN and infinite elements of p, after the step"),
    Column("update_sumsq", "sum", "sum of squares of the update the optimizer intended, decay included"),
    Column("update_absmax", "max", "largest element of that update"),
    Column("weight_update_dot", "sum", "sum of p * update: the intended one where it is known, else the applied one"),
    Column("applied_update_sumsq", "sum", "sum of (p after - p before)^2, from a snapshot"),
    Column("unchanged_count", "sum", "sampled elements whose bits did not change although lr > 0 and g != 0"),
    Column("unchanged_sampled", "sum", "sampled elements with lr > 0 and g != 0"),
    Column("grad_sumsq", "sum", "sum of g^2 before clipping, where that is provable"),
)


@dataclass(frozen=True)
class Metric:
    """A quantity a person may ask for by name.

    Attributes:
        name: The name in `RunLog.series` and `RunLog.table`.
        unit: "" for a pure number.
        scope: "step" (one number a step), "group" (one per parameter group), "tensor" (one per tensor) or "layer" (one per
            layer that has such a thing, named by a weight of its).
        definition: What it is, exactly.
        recorded_by: What makes it appear in a log, for the error message of a log that lacks it.
        columns: For tensors: the stored columns it is derived from.
        derive: For tensors: (columns, numel) -> values, elementwise.
    """

    name: str
    unit: str
    scope: Scope
    definition: str
    recorded_by: str = "stabkit.watch"
    columns: tuple[str, ...] = ()
    derive: Callable[[Columns, Array], Array] | None = None

    @property
    def occasional(self) -> bool:
        """Whether only some loops have anything of the kind, such as a GradScaler or weights of 16 bits."""
        return self.recorded_by.startswith(("a loop ", "stabkit.watch where weights"))


def _root(column: str) -> Callable[[Columns, Array], Array]:
    return lambda c, n: np.sqrt(c[column])


def _share(column: str, of: str | None = None) -> Callable[[Columns, Array], Array]:
    return lambda c, n: _divide(c[column], c[of] if of else n)


def _plain(column: str) -> Callable[[Columns, Array], Array]:
    return lambda c, n: np.asarray(c[column], dtype=np.float64)


def _divide(a: Any, b: Any) -> Array:
    """a / b, missing (NaN) where b is zero: a ratio to nothing is never invented."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    quotient: Array = np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)
    return quotient


def _cosine(c: Columns, n: Array) -> Array:
    # Roots first: the product of two sums of squares of 1e-18 would underflow.
    norms = np.sqrt(c["grad_used_sumsq"]), np.sqrt(c["momentum_sumsq"])
    return _divide(_divide(c["momentum_dot"], norms[0]), norms[1])


def _update_ratio(c: Columns, n: Array) -> Array:
    applied, intended = c["applied_update_sumsq"], c["update_sumsq"]
    return _divide(np.sqrt(np.where(np.isnan(applied), intended, applied)), np.sqrt(c["weight_sumsq"]))


def _tensor(
    name: str, definition: str, columns: tuple[str, ...], derive: Callable[[Columns, Array], Array], recorded_by: str = ""
) -> Metric:
    recorded_by = recorded_by or "stabkit.watch with an optimizer of the Adam family"
    return Metric(name, "", "tensor", definition, recorded_by, columns, derive)


TENSOR_METRICS: tuple[Metric, ...] = (
    _tensor("grad_norm_used", "L2 norm of g as the optimizer consumed it (after clipping)", ("grad_used_sumsq",),
            _root("grad_used_sumsq"), "stabkit.watch"),
    _tensor("grad_norm", "L2 norm of g before clipping, where that is provable", ("grad_sumsq",), _root("grad_sumsq"),
            "stabkit.watch, where nothing but one clip call wrote to the gradient between backward and step"),
    _tensor("grad_absmax", "largest finite |element| of g as used", ("grad_absmax",), _plain("grad_absmax"), "stabkit.watch"),
    _tensor("grad_nonfinite", "count of NaN and infinite elements of g as used", ("grad_nonfinite",),
            _plain("grad_nonfinite"), "stabkit.watch"),
    _tensor("grad_zero_fraction", "share of exact zeros in g as used", ("grad_zeros",), _share("grad_zeros"), "stabkit.watch"),
    _tensor("exp_avg_norm", "L2 norm of m", ("exp_avg_sumsq",), _root("exp_avg_sumsq")),
    _tensor("exp_avg_sq_mean", "mean of v-hat", ("exp_avg_sq_sum",), _share("exp_avg_sq_sum")),
    _tensor("exp_avg_sq_min", "smallest element of v-hat", ("exp_avg_sq_min",), _plain("exp_avg_sq_min")),
    _tensor("exp_avg_sq_max", "largest element of v-hat", ("exp_avg_sq_max",), _plain("exp_avg_sq_max")),
    _tensor("rms_ratio", "sqrt(mean(g_used^2 / max(v-hat, eps^2))), with the denominator the optimizer used", ("rms_sum",),
            lambda c, n: np.sqrt(_divide(c["rms_sum"], n))),
    _tensor("grad_momentum_cosine", "cosine between g_used and m before the step",
            ("momentum_dot", "grad_used_sumsq", "momentum_sumsq"), _cosine),
    _tensor("eps_fraction", "share of elements with v > 0 and sqrt(v-hat) < 10 eps", ("eps_count",), _share("eps_count")),
    _tensor("weight_norm", "L2 norm of p before the step", ("weight_sumsq",), _root("weight_sumsq"), "stabkit.watch"),
    _tensor("weight_absmax", "largest finite |element| of p after the step", ("weight_absmax",), _plain("weight_absmax"),
            "stabkit.watch"),
    _tensor("weight_nonfinite", "count of NaN and infinite elements of p after the step", ("weight_nonfinite",),
            _plain("weight_nonfinite"), "stabkit.watch"),
    _tensor("update_norm", "L2 norm of the update the optimizer intended, decay included", ("update_sumsq",),
            _root("update_sumsq")),
    _tensor("update_absmax", "largest |element| of that update", ("update_absmax",), _plain("update_absmax")),
    _tensor("applied_update_norm", "L2 norm of p after - p before, measured from a snapshot", ("applied_update_sumsq",),
            _root("applied_update_sumsq"),
            "stabkit.watch of an optimizer whose update is not worked out from its state, or with exact_updates=True"),
    _tensor("weight_update_dot", "sum of p * update: the intended one where it is known, else the applied one",
            ("weight_update_dot",), _plain("weight_update_dot"), "stabkit.watch"),
    _tensor("unchanged_fraction", "share of sampled elements whose bits did not change although lr > 0 and g != 0",
            ("unchanged_count", "unchanged_sampled"), _share("unchanged_count", "unchanged_sampled"),
            "stabkit.watch where weights are of 16 bits, or with exact_updates=True"),
    _tensor("update_ratio", "applied_update_norm where it was recorded, else update_norm, over weight_norm",
            ("applied_update_sumsq", "update_sumsq", "weight_sumsq"), _update_ratio),
)  # fmt: skip

FORWARD = "stabkit.watch with forward=True, where the model is not compiled"

WIRING_METRICS: tuple[Metric, ...] = (
    Metric("clip_scale", "", "step", "the loss scale that the gradients still carried when they were last clipped",
           "a loop that clips"),
    Metric("clips_before_backward", "", "step", "clipping calls since the previous step, before any backward call"),
    Metric("clips_between_backwards", "", "step",
           "clipping calls of gradients to which a further backward call of the same step added"),
    Metric("clips_after_backward", "", "step", "clipping calls after the last backward call"),
    Metric("kept_gradients", "", "step", "1 where the first backward call found the gradients as the previous step left them"),
    Metric("dropped_backwards", "", "step", "backward calls since the previous step whose gradients were thrown away"),
    Metric("loss_kinds", "", "step", "kinds of loss among the step's backward calls, told apart by their first operations"),
    Metric("undivided_losses", "", "step", "backward calls of the step where several of one kind of loss, all of them means, "
           "reached the same parameters and nothing was multiplied or divided, neither losses at their end nor gradients"),
    Metric("step_outside_scaler", "", "step", "1 where the loss was scaled but the optimizer was called outside "
           "GradScaler.step; 2 where the gradients still carried the scale; 3 where they were written to by hand, which may "
           "have taken it off"),
    Metric("scaler_updates", "", "step", "GradScaler.update calls since the previous step"),
    Metric("scheduler_steps_before_backward", "", "step", "scheduler steps since the previous step, before any backward call"),
    Metric("scheduler_steps_between_backwards", "", "step",
           "scheduler steps that a further backward call of the same step followed"),
    Metric("scheduler_steps_after_backward", "", "step", "scheduler steps after the last backward call, before the step"),
)  # fmt: skip
"""In which order the loop did things since the previous step."""

STEP_METRICS: tuple[Metric, ...] = (
    *WIRING_METRICS,
    Metric("loss", "", "step", "the sum of the step's backward roots where they were divided or differ, else their mean"),
    Metric("loss_sum", "", "step", "sum of the backward roots of the step"),
    Metric("backward_count", "", "step", "number of backward calls since the previous step"),
    Metric("loss_reduction", "", "step", "how loss came from its roots: 0 none seen, 1 single, 2 their sum, 3 their mean"),
    Metric("lr", "", "group", "learning rate of each parameter group, the one the step used"),
    Metric("weight_decay", "", "group", "weight decay of each parameter group"),
    Metric("beta1", "", "group", "decay of the first moment"),
    Metric("beta2", "", "group", "decay of the second moment"),
    Metric("eps", "", "group", "the optimizer's eps"),
    Metric("grad_norm", "", "step", "global L2 norm of the gradient before clipping, where that is provable"),
    Metric("grad_norm_used", "", "step", "global L2 norm of the gradient as the optimizer consumed it"),
    Metric("clip_max_norm", "", "step", "the limit of the outermost clip_grad_norm_ call", "a loop that clips by norm"),
    Metric("clip_value", "", "step", "the limit of the outermost clip_grad_value_ call", "a loop that clips by value"),
    Metric("clip_coefficient", "", "step", "what the gradient was multiplied by in that call", "a loop that clips by norm"),
    Metric("loss_scale", "", "step", "the factor this step's loss was multiplied by", "a loop with an enabled GradScaler"),
    Metric("skipped", "", "step", "1 where the optimizer step was skipped"),
    Metric("applied_steps", "steps", "step", "the optimizer's own count of steps"),
    Metric("weight_norm", "", "step", "global L2 norm of the weights before the step"),
    Metric("update_norm", "", "step", "global L2 norm of the intended update"),
    Metric("applied_update_norm", "", "step", "global L2 norm of p after - p before, where it was measured of every tensor",
           "stabkit.watch of an optimizer whose update is not worked out from its state, or with exact_updates=True"),
    Metric("update_ratio", "", "step", "applied_update_norm where it was recorded, else update_norm, over weight_norm"),
    Metric("time", "s", "step", "wall-clock time at the end of the step, seconds since the epoch"),
)  # fmt: skip

FORWARD_METRICS: tuple[Metric, ...] = (
    Metric("output_log_partition", "nats", "step", "mean over rows of logsumexp(logits) - log(classes) of the logits that "
           "cross_entropy was given, 0 where all are 0; over evenly spaced rows beyond 4 million logits; of several calls that "
           "which lies farthest from 0", FORWARD),
    Metric("attention_logit_bound", "", "layer", "the longest query times the longest key of the same sequence and head, "
           "scaled, the largest such product of the step: no logit of that attention is larger, before masks and biases are "
           "added; by the name of the weight that makes the queries",
           FORWARD),
)  # fmt: skip
"""What stands beside the records, where the forward pass was looked at."""

METRICS: dict[tuple[str, Scope], Metric] = {
    (m.name, m.scope): m for m in (*STEP_METRICS, *TENSOR_METRICS, *FORWARD_METRICS)
}
"""Every metric by (name, scope): `grad_norm` exists for the whole step and for each tensor."""
