"""What was set differently: facts of the runs, the optimizers and their options, rates and the like of groups, tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stabkit.compare.common import Pair
from stabkit.compare.result import Setting
from stabkit.metric import Array
from stabkit.report.words import count, listed, number
from stabkit.runlog import RunLog

__all__ = ["settings_of"]

_OF_SOURCES = {"taken", "guessed", "left", "text"}
"""Facts on how a log of another tool was read: no setting of the run."""
_NAMES_SHOWN = 4
_LIMITS = ("clip_max_norm", "clip_value")


def settings_of(a: RunLog, b: RunLog, pairs: list[Pair]) -> list[Setting]:
    """All differences, those of the optimizers first."""
    found: list[Setting] = []
    if len(a.streams) != len(b.streams):
        found.append(Setting(name="optimizers", a=str(len(a.streams)), b=str(len(b.streams))))
    for place, pair in enumerate(pairs):
        prefix = f"optimizer {place}: " if len(pairs) > 1 else ""
        found += [Setting(name=prefix + name, a=x, b=y, step=step) for name, x, y, step in _of_optimizer(pair)]
        found += [Setting(name=prefix + name, a=x, b=y) for name, x, y in _of_tensors(pair)]
    return found + _of_runs(a, b)


def _of_runs(a: RunLog, b: RunLog) -> list[Setting]:
    facts = [{name: value for name, value in run.facts.items() if name not in _OF_SOURCES} for run in (a, b)]
    names = dict.fromkeys([*facts[0], *facts[1]]) if all(facts) else {}  # of a log of another tool little is known
    found = [Setting(name=name.replace("_", " "), a=_said(facts[0], name), b=_said(facts[1], name)) for name in names]
    found.append(Setting(name="recorded by", a=a.source, b=b.source))
    found.append(Setting(name="processes", a=str(len(a.ranks) or 1), b=str(len(b.ranks) or 1)))
    return [each for each in found if each.a != each.b]


def _said(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _of_optimizer(pair: Pair) -> Iterator[tuple[str, str, str, int | None]]:
    a, b = pair.a.stream, pair.b.stream
    told = (("optimizer", a.optimizer, b.optimizer), ("implementation", a.implementation, b.implementation))
    for name, x, y in told:
        if x and y and x != y:
            yield name, x, y, None
    for name in dict.fromkeys([*a.options, *b.options]):
        x, y = (("on" if side.options[name] else "off") if name in side.options else "-" for side in (a, b))
        if x != y and (a.options and b.options):
            yield name.replace("_", " "), x, y, None
    groups = [max((values.shape[1] for values in side.group_values.values()), default=0) for side in (a, b)]
    if all(groups) and groups[0] != groups[1]:
        yield "parameter groups", str(groups[0]), str(groups[1]), None
    for name in pair.group_names:
        yield from _of_groups(pair, name)
    for name in _LIMITS:
        yield from _of_limit(pair, name)


def _of_limit(pair: Pair, name: str) -> Iterator[tuple[str, str, str, int | None]]:
    """A limit of the clipping, which only a loop that clips has."""
    a, b = pair.values(pair.a, name), pair.values(pair.b, name)
    apart = np.flatnonzero((a != b) & ~(np.isnan(a) & np.isnan(b)))
    if len(apart) and (_course(a), _course(b)) != ("-", "-") and (pair.a.source == pair.b.source):
        x, y = ("none" if told == "-" else told for told in (_course(a), _course(b)))
        yield name, x, y, int(pair.steps[apart[0]])


def _of_groups(pair: Pair, name: str) -> Iterator[tuple[str, str, str, int | None]]:
    """A number of the groups, all groups in one line where they differ alike."""
    lines: dict[tuple[str, str, int], list[int]] = {}
    both = pair.group_pairs(name)
    for place, (x, y) in enumerate(both):
        apart = np.flatnonzero((x != y) & ~np.isnan(x) & ~np.isnan(y))
        if len(apart):
            lines.setdefault((_course(x), _course(y), int(apart[0])), []).append(place)
    for (x_told, y_told, row), alike in lines.items():
        named = ", ".join(str(pair.groups[place][0]) for place in alike)
        where = "" if len(alike) == len(both) else f", group{'s'[: len(alike) > 1]} {named}"
        step = int(pair.steps[row])
        if x_told == y_told:  # the same range, in another order
            x_told, y_told = (f"{number(float(side[row]))} at step {step}" for side in both[alike[0]])
        yield name + where, x_told, y_told, step


def _course(values: Array) -> str:
    """One number where it stayed, else its range and its last value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "-"
    low, high, last = float(known.min()), float(known.max()), float(known[-1])
    return number(last) if low == high else f"{number(low)} to {number(high)}, last {number(last)}"


def _of_tensors(pair: Pair) -> Iterator[tuple[str, str, str]]:
    a, b = ({tensor.name: tensor for tensor in run.tensors} for run in (pair.a, pair.b))
    if not a or not b:  # a log without tensors says nothing of the model
        return
    only = [[name for name in x if name not in y] for x, y in ((a, b), (b, a))]
    if any(only):
        told = [f"{count(len(names), 'tensor')}: {listed(names, _NAMES_SHOWN)}" if names else "-" for names in only]
        yield "tensors the other has not", told[0], told[1]
    for what in ("shape", "dtype", "group", "trainable"):
        differs = [name for name in a if name in b and getattr(a[name], what) != getattr(b[name], what)]
        if differs:
            values = [str(getattr(side[differs[0]], what)) for side in (a, b)]
            more = f" and {len(differs) - 1:,} more" if len(differs) > 1 else ""
            yield f"{what} of {differs[0]}{more}", values[0], values[1]
