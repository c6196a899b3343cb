"""What differs beyond noise: looks for it in the loss, the gradient norms and each tensor's gradients, all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.compare.common import Pair
from stabkit.compare.noise import LAST, LEAST, Blocks, blocks_of, discoveries, known_median, log_of
from stabkit.compare.result import Parting
from stabkit.metric import Array

__all__ = ["partings_of"]

_OF_STEPS = ("loss", "grad_norm", "grad_norm_used")
_OF_TENSORS = ("grad_norm", "grad_norm_used", "rms_ratio")
"""Those that jitter. Weights, second moments and updates are smooth: what a seed gave them stays far beyond their own noise."""
_LEAST_SHARE = 1e-6
"""Of the norm of all gradients: what float32 loses in a sum of a few."""
_TOLD_AFTER = 3
"""Records in a row in which one run's value is no number and the other's is."""


@dataclass(frozen=True)
class _Series:
    """One quantity of both runs [n, columns], and what was found in it."""

    metric: str
    names: tuple[str | None, ...]
    steps: NDArray[np.int64]
    a: Array
    b: Array
    blocks: Blocks | None = None


def partings_of(pairs: Sequence[Pair]) -> tuple[list[Parting], tuple[str, ...]]:
    """What differs beyond noise, the earliest first, one entry for each quantity; and which quantities were looked at.

    Args:
        pairs: The optimizers of the two runs. Losses are those of the first.
    """
    found: list[Parting] = []
    series: list[_Series] = []
    for place, pair in enumerate(pairs):
        for each in (*_of_steps(pair, place), *_of_tensors(pair)):
            found += _broken(each)
            if len(each.steps) >= LEAST:
                logs = log_of(each.a), log_of(each.b)
                blocks = blocks_of(*logs, from_before=each.names != (None,))
                series.append(_Series(each.metric, each.names, each.steps, each.a, each.b, blocks))
    tests = [each.blocks.p.ravel() for each in series if each.blocks]
    believed = discoveries(np.concatenate(tests)) if tests else np.empty(0, np.bool_)
    looked_at: list[str] = []
    for each in series:
        assert each.blocks is not None
        here, believed = believed[: each.blocks.p.size].reshape(each.blocks.p.shape), believed[each.blocks.p.size :]
        if not np.isnan(each.blocks.p).all():
            looked_at.append(each.metric if each.names == (None,) else f"{each.metric} of {len(each.names)} tensors")
        found += [_told(each, each.blocks, here[:, column], column) for column in np.flatnonzero(here.any(axis=0)).tolist()]
    return _first_of_each(found), tuple(looked_at)


def _of_steps(pair: Pair, place: int) -> list[_Series]:
    names = [name for name in _OF_STEPS if pair.has_step(name) and not (name == "loss" and place)]
    if "grad_norm" in names and "grad_norm_used" in names:
        names.remove("grad_norm_used")
    tables = {name: pair.of_steps(name) for name in names}
    return [_Series(name, (None,), pair.steps, a[:, None], b[:, None]) for name, (a, b) in tables.items()]


def _of_tensors(pair: Pair) -> list[_Series]:
    names = [name for name in _OF_TENSORS if pair.has_table(name)]
    if "grad_norm" in names and "grad_norm_used" in names:
        names.remove("grad_norm_used")
    rows = pair.tensor_steps > 0
    tables = {name: tuple(side[rows] for side in pair.table(name)) for name in names}
    kept = _more_than_rounding([side for name, sides in tables.items() if name.startswith("grad") for side in sides], pair)
    called = tuple(pair.names[column] for column in kept)
    return [_Series(name, called, pair.tensor_steps[rows], a[:, kept], b[:, kept]) for name, (a, b) in tables.items()]


def _more_than_rounding(norms: Sequence[Array], pair: Pair) -> NDArray[np.intp]:
    """The tensors with a gradient to speak of. That of an attention's key bias is zero but for rounding: other in every run."""
    tells = np.zeros(len(pair.names), np.bool_)
    with np.errstate(all="ignore"):
        for values in norms:
            of_all = np.sqrt(np.nansum(values**2, axis=1, keepdims=True))
            tells |= ~(known_median(values / of_all) < _LEAST_SHARE)
    return np.flatnonzero(tells) if norms else np.arange(len(pair.names))


def _broken(series: _Series) -> list[Parting]:
    """Where the loss of one run is no number and the other's is, for a while or to the end."""
    if series.metric != "loss":
        return []
    a, b = series.a[:, 0], series.b[:, 0]
    odd = np.isfinite(a) != np.isfinite(b)
    for row in np.flatnonzero(odd):
        stretch = odd[row : row + _TOLD_AFTER]
        if stretch.all() and (len(stretch) == _TOLD_AFTER or row + len(stretch) == len(odd)):
            last = int(row + np.argmin(odd[row:])) - 1 if not odd[row:].all() else len(odd) - 1
            where = {"step": int(series.steps[row]), "until": int(series.steps[last])}
            return [Parting(metric="loss", tensor=None, **where, a=float(a[row]), b=float(b[row]), times=np.inf, p=0.0)]
    return []


def _told(series: _Series, blocks: Blocks, believed: NDArray[np.bool_], column: int) -> Parting:
    first = int(np.flatnonzero(believed)[0])
    alike = np.sign(blocks.difference[:, column]) == np.sign(blocks.difference[first, column])
    beyond = alike & (np.abs(blocks.difference[:, column]) > blocks.unit[:, column])
    more = np.flatnonzero(~beyond[first:])
    end = first + int(more[0]) if len(more) else len(beyond)
    begin = _beginning(series, blocks, first, column)
    stretch = slice(begin, (first + LAST) * blocks.width)
    last = min(end * blocks.width, len(series.steps)) - 1 if end < len(beyond) else len(series.steps) - 1
    return Parting(
        metric=series.metric,
        tensor=series.names[column],
        step=int(series.steps[begin]),
        until=int(series.steps[last]),
        a=float(np.nanmedian(series.a[stretch, column])),
        b=float(np.nanmedian(series.b[stretch, column])),
        times=float(abs(blocks.difference[first, column]) / blocks.unit[first, column]),
        p=float(blocks.p[first, column]),
    )


def _beginning(series: _Series, blocks: Blocks, first: int, column: int) -> int:
    """The row at which the difference changed: in the first block that tells it or the one before, where two levels fit."""
    if not first:
        return 0
    rows = slice((first - 1) * blocks.width, (first + 1) * blocks.width)
    difference = log_of(series.a[rows, column]) - log_of(series.b[rows, column])
    known = np.flatnonzero(~np.isnan(difference))
    values = difference[known]
    if len(values) < 4:
        return first * blocks.width
    counts = np.arange(1, len(values))
    left = np.cumsum(values)[:-1] / counts
    right = (values.sum() - np.cumsum(values)[:-1]) / (len(values) - counts)
    gain = counts * (len(values) - counts) * (left - right) ** 2
    return int(rows.start + known[int(np.argmax(gain)) + 1])


def _first_of_each(found: Sequence[Parting]) -> list[Parting]:
    """The earliest of each quantity and tensor; those of one step with the larger difference first, the whole step's before."""
    ordered = sorted(found, key=lambda each: (each.step, each.tensor is not None, -each.times))
    first: dict[tuple[str, str | None], Parting] = {}
    for each in ordered:
        first.setdefault((each.metric, each.tensor), each)
    return list(first.values())
