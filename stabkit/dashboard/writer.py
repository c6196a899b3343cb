"""Writes TensorBoard's event file: a handful of clear dashboards rather than a thousand tags.

- `health/`: `loss`, `lr`, `grad_norm`, `grad_norm_used`, `clip_coefficient`, `update_ratio` and, with a GradScaler,
  `loss_scale` and `skipped`, all as defined in `stabkit.metric`; `clip_rate` is the share of the last 100 steps that
  were clipped. From the step on where the groups' rates differ, `lr/group0` and so on replace `lr`; of many groups
  `lr/lowest` and `lr/highest`.
- `modules/grad_norm/`, `modules/update_ratio/`, `modules/rms_ratio/`, then the module: tensors are merged into at most
  16 of them. Where the gradient before clipping is not known, `modules/grad_norm_used/` replaces `modules/grad_norm/`.
- `user/`: the user's own numbers.
- Histograms `tensors/`: over all tensors, of update ratio, gradient norm and `rms_ratio`, about every 100 steps.
- Text `findings/`: what was found while the run goes on, where live verdicts were asked for; a tag for each rule.

The second optimizer's tags begin with `optimizer1/`, the third's with `optimizer2/`.

A quantity that was not measured is not written. One that was measured and is not finite is written as it is, and
TensorBoard marks the place with a triangle: a loss counts as measured if a backward root was seen, and a sum over
tensors if nonfinite elements were counted in them.

Every event is one `write`, so a live TensorBoard sees it at its next reload, and a killed process loses the step in
flight only. This module imports no torch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.dashboard.events import (
    EventFile,
    ScalarEncoder,
    clean_tag,
    encode_event,
    encode_restart,
    encode_text_tensor,
)
from stabkit.dashboard.layout import CLIP_WINDOW, custom_scalars, describe, modules_of
from stabkit.dashboard.spread import Spread
from stabkit.dashboard.told import markdown, tag_of
from stabkit.finding import Finding
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Layout, StepRecord

__all__ = ["DashboardWriter"]

_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_SUMS = ("grad_sumsq", "grad_used_sumsq", "rms_sum", "update_sumsq", "weight_sumsq")
_COUNTS = ("grad_nonfinite", "weight_nonfinite")
_TAKEN = np.array([_PLACE[name] for name in (*_SUMS, *_COUNTS, "applied_update_sumsq")])
_GROUPS_SHOWN = 8
"""With more parameter groups of different rates (layer-wise decay) only the lowest and the highest rate are shown."""

_QUANTITIES = ("grad_norm", "update_ratio", "rms_ratio")
_QUANTITIES_USED = ("grad_norm_used", "update_ratio", "rms_ratio")

Tags = list[str]
Values = list[float]


class DashboardWriter:
    """Writes one event file. Not thread-safe but for `finding`; belongs to the process that made it.

    Args:
        directory: An existing directory, which becomes a run in TensorBoard.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._file = EventFile(Path(directory))
        self._encoder = ScalarEncoder(describe)
        self._streams: dict[int, _Stream] = {}
        self._laid_out = False
        self._last_step = math.inf  # of the first optimizer; from here every step goes back

    def layout(self, optimizer: int, layout: Layout) -> None:
        """Follow an optimizer's tensors: before its first step, and again whenever they change."""
        self._stream(optimizer).set_tensors(layout)
        if not self._laid_out:
            self._laid_out = True
            page = custom_scalars().SerializeToString()
            # Both names are those of tensorboard.plugins.custom_scalar.metadata.
            summary = encode_text_tensor("custom_scalars__config__", page, "custom_scalars")
            self._file.write(encode_event(time.time(), 0, summary))

    def step(self, optimizer: int, record: StepRecord) -> None:
        """Write what a step's record holds, as one event. The weights at entry (step 0) are not shown."""
        if record.step <= 0:
            return
        if record.step <= self._last_step and (optimizer == 0 or self._last_step == math.inf):
            # TensorBoard takes the first such event for a start and each later one for a restart. Without them one of
            # its two loaders draws lines back. It forgets by step alone, so only one optimizer can be followed.
            self._file.write(encode_restart(time.time(), record.step))
            self._last_step = 0
        if optimizer == 0:
            self._last_step = record.step
        stream = self._stream(optimizer)
        tags, values = stream.health(record)
        histograms = b""
        if record.tensors is not None and len(record.tensors):
            module_tags, module_values = stream.modules(record, record.tensors)
            tags += module_tags
            values += module_values
            histograms = stream.histograms(record.step, record.tensors)
        self._write(record.time, record.step, tags, values, histograms)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Write the user's own numbers, as one event; whatever is not a real number is passed over."""
        numbers = {f"user/{clean_tag(str(name))}": _number(value) for name, value in values.items()}
        shown = {tag: value for tag, value in numbers.items() if value is not None}
        self._write(math.nan, step, list(shown), list(shown.values()))

    def finding(self, finding: Finding) -> None:
        """Write a finding as text, at the step at which it fires. May be called from another thread than the other methods."""
        summary = encode_text_tensor(clean_tag(tag_of(finding)), markdown(finding).encode(errors="replace"), "text")
        self._file.write(encode_event(time.time(), finding.first_step, summary))

    def flush(self) -> None:
        """Nothing waits: every event is already in the file."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _stream(self, optimizer: int) -> _Stream:
        if optimizer not in self._streams:
            self._streams[optimizer] = _Stream("" if optimizer == 0 else f"optimizer{optimizer}/")
        return self._streams[optimizer]

    def _write(self, wall_time: float, step: int, tags: Tags, values: Values, histograms: bytes = b"") -> None:
        if tags or histograms:
            summary = self._encoder.encode(tags, values) + histograms
            self._file.write(encode_event(time.time() if math.isnan(wall_time) else wall_time, step, summary))


class _Stream:
    """What is known of one optimizer: its modules, and the steps that the clip rate looks back on."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._health = f"{prefix}health/"
        self._clipped: deque[bool | None] = deque(maxlen=CLIP_WINDOW)
        self._attempt = -1
        self._rates_differ = False
        self._scaled = False
        self._seen: set[str] = set()
        self._measured = np.array([False, True, False, False, True])  # of _SUMS: what every optimizer has, and was seen
        self._take = np.zeros((len(_TAKEN), 0), np.intp)
        self._starts = np.zeros(0, np.intp)
        self._numel = np.zeros(0)
        self._module_tags: dict[str, Tags] = {}
        self._all_tags: Tags = []
        self._module_sizes = np.zeros(0)
        self._spread = Spread(prefix)
        self._sizes = np.zeros(0)  # in the order of the records, where `_numel` is sorted by module

    def set_tensors(self, layout: Layout) -> None:
        """Sort the tensors by module, so that a module's sum is one over neighbours."""
        labels = modules_of(layout.tensors)
        names = list(dict.fromkeys(labels))
        number = {name: i for i, name in enumerate(names)}
        member = np.array([number[label] for label in labels], dtype=np.intp)
        order = np.argsort(member, kind="stable")
        self._take = order * len(TENSOR_COLUMNS) + _TAKEN[:, None]
        self._starts = np.searchsorted(member[order], np.arange(len(names)))
        self._sizes = np.array([t.numel for t in layout.tensors], dtype=np.float64)
        self._numel = self._sizes[order]
        self._module_sizes = np.add.reduceat(self._numel, self._starts) if names else np.zeros(0)
        cleaned = [clean_tag(name) for name in names]
        self._module_tags = {
            quantity: [f"{self._prefix}modules/{quantity}/{name}" for name in cleaned]
            for quantity in {*_QUANTITIES, *_QUANTITIES_USED}
        }
        self._all_tags = [tag for quantity in _QUANTITIES for tag in self._module_tags[quantity]]

    def health(self, record: StepRecord) -> tuple[Tags, Values]:
        """The numbers of the whole step."""
        update = record.update_norm if math.isnan(record.applied_update_norm) else record.applied_update_norm
        update_ratio = _ratio(update, record.weight_norm)
        bad_gradient = bad_update = False
        if math.isnan(record.grad_norm + record.grad_norm_used + update_ratio):
            bad_gradient, bad_weight = _nonfinite(record)
            bad_update = not record.skipped and (bad_gradient or bad_weight)
        found = {
            "loss": (record.loss, record.loss_reduction > 0),
            **self._rates(record),
            "grad_norm": (record.grad_norm, bad_gradient and "grad_norm" in self._seen),
            "grad_norm_used": (record.grad_norm_used, bad_gradient),
            "clip_coefficient": (record.clip_coefficient, bad_gradient and not math.isnan(record.clip_max_norm)),
            "clip_rate": (self._clip_rate(record), False),
            "update_ratio": (update_ratio, bad_update and "update_ratio" in self._seen),
            "loss_scale": (record.loss_scale, False),
        }
        self._scaled = self._scaled or bool(record.skipped) or not math.isnan(record.loss_scale)
        if self._scaled:
            found["skipped"] = (float(record.skipped), True)
        shown = {name: value for name, (value, measured) in found.items() if measured or not math.isnan(value)}
        self._seen.update(shown)
        return [self._health + name for name in shown], list(shown.values())

    def modules(self, record: StepRecord, tensors: Array) -> tuple[Tags, Values]:
        """The numbers of each module, by merging its tensors' sums."""
        if tensors.shape != (self._numel.size, len(TENSOR_COLUMNS)):
            raise ValueError(f"a record of {tensors.shape} does not fit a layout of {self._numel.size} tensors")
        taken = tensors.take(self._take)
        if (plain := self._plain_modules(taken)) is not None:
            return plain
        sums, nonfinite, applied = taken[:5], taken[5:7] > 0, taken[7]
        np.copyto(sums[3], applied, where=applied == applied)  # of the two updates the one that was measured
        known = sums == sums  # not NaN
        self._measured |= known.any(axis=1)
        if nonfinite.any():  # a NaN is then a result; it is a missing value anywhere else
            known[:2] |= nonfinite[0] & self._measured[:2, None]
            if not record.skipped:
                known[2:] |= nonfinite.any(axis=0) & self._measured[2:, None]
        known[3:] &= known[3] & known[4]  # a ratio needs both

        added = np.zeros((11, self._numel.size))
        np.copyto(added[:5], sums, where=known)
        np.copyto(added[5], self._numel, where=known[2])
        added[6:] = known
        merged = np.add.reduceat(added, self._starts, axis=1)
        # Only if it is known of every tensor is a module's gradient norm before clipping its gradient norm.
        before = not (known[1] > known[0]).any()
        quantities = _QUANTITIES if before else _QUANTITIES_USED
        divisors = np.ones((3, len(self._starts)))
        divisors[1:] = merged[4:6]
        shown = (merged[[6 if before else 7, 9, 8]] > 0) & (divisors != 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            results = np.sqrt(merged[[0 if before else 1, 3, 2]] / divisors)
        tags = [tag for quantity in quantities for tag in self._module_tags[quantity]]
        return list(itertools.compress(tags, shown.ravel().tolist())), results[shown].tolist()

    def _plain_modules(self, taken: Array) -> tuple[Tags, Values] | None:
        """The same, quickly, where everything is known and finite, as it is at nearly every step; else None."""
        sums = taken[:5]
        if not math.isfinite(sums.sum()) or taken[5:7].any() or (taken[7] == taken[7]).any():
            return None
        merged = np.add.reduceat(sums, self._starts, axis=1)
        if not merged[4].all():
            return None
        self._measured[:] = True
        results = np.sqrt([merged[0], merged[3] / merged[4], merged[2] / self._module_sizes])
        return list(self._all_tags), results.ravel().tolist()

    def histograms(self, step: int, tensors: Array) -> bytes:
        """Encoded histograms over the tensors, where any are due."""
        return self._spread.summary(step, tensors, self._sizes)

    def _rates(self, record: StepRecord) -> dict[str, tuple[float, bool]]:
        rates = [group.lr for group in record.groups]
        known = [rate for rate in rates if not math.isnan(rate)]
        # For good, so that lines do not come and go where rates cross.
        self._rates_differ = self._rates_differ or len(set(known)) > 1
        if not known or not self._rates_differ:
            return {"lr": (known[0], False)} if known else {}
        if len(rates) > _GROUPS_SHOWN:
            return {"lr/lowest": (min(known), False), "lr/highest": (max(known), False)}
        return {f"lr/group{i}": (rate, False) for i, rate in enumerate(rates)}

    def _clip_rate(self, record: StepRecord) -> float:
        if record.attempt != self._attempt:
            self._attempt = record.attempt
            self._clipped.clear()
        self._clipped.append(None if math.isnan(record.clip_coefficient) else record.clip_coefficient < 1)
        if self._clipped.count(None) == len(self._clipped):
            return math.nan  # this loop does not clip
        return self._clipped.count(True) / len(self._clipped)


def _nonfinite(record: StepRecord) -> tuple[bool, bool]:
    """Whether nonfinite elements were counted in the gradient and in the weights."""
    if record.tensors is None or not len(record.tensors):
        return False, False
    gradient, weight = (record.tensors[:, _PLACE[name]] for name in _COUNTS)
    return bool((gradient > 0).any()), bool((weight > 0).any())


def _ratio(a: float, b: float) -> float:
    """a / b, missing where b is zero: a ratio to nothing is never invented."""
    return a / b if b else math.nan


def _number(value: Any) -> float | None:
    if not isinstance(value, (Real, np.bool_)):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number too large for a float
        return math.copysign(math.inf, 1 if bool(value > 0) else -1)  # type: ignore[operator]
