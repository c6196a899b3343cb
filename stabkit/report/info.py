"""What a log holds: by what it was recorded, how far it goes, which quantities it has and why others are missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from stabkit.metric import METRICS, Array, Metric
from stabkit.report.terminal import columns, hang, heading, show
from stabkit.report.words import count, duration, listed, number, printable, size
from stabkit.runlog import RunLog

__all__ = ["extent", "facts", "info", "kind", "marks"]

_LABEL = 14
_ATTEMPTS_SHOWN, _NOTES_SHOWN = 8, 10


def info(attempts: Sequence[RunLog], bytes_on_disk: int, console: Console) -> None:
    """Print what a log holds.

    Args:
        attempts: The attempts to tell of, oldest first; the last of them in detail.
        bytes_on_disk: What the log takes up; 0 where that is not known.
        console: Where to.
    """
    run = attempts[-1]
    console.print(_summary(run, bytes_on_disk), soft_wrap=not console.is_terminal)
    console.print()
    for label, text in facts(run).items():
        _labelled(label, text, console)
    _attempts(attempts, console)
    for index in range(len(run.streams)):
        _optimizer(run.optimizer(index), console)
    _quantities(run, console)
    _scalars(run, console)
    _bullets("Marks", marks(run), console)
    faults = [_fault(event) for event in _events(run, "fault")]
    _bullets("Faults of the recorder (the training went on)", faults, console)
    _bullets("Notes on the log", run.notes, console)


def _summary(run: RunLog, bytes_on_disk: int) -> Text:
    tensors = [tensor for stream in run.streams for tensor in stream.tensors]
    own = "taken" not in run.facts  # a log of another tool does not tell how large a tensor is
    parts = [
        count(len(run.steps), "step"),
        count(run.attempts, "attempt"),
        *([count(len(tensors), "tensor")] if tensors or own else []),
        *([count(sum(tensor.numel for tensor in tensors), "parameter")] if own else []),
        *([size(bytes_on_disk)] if bytes_on_disk else []),
    ]
    return Text.assemble((printable(run.path or "this run"), "bold"), ": ", ", ".join(parts))


def facts(run: RunLog) -> dict[str, str]:
    """By what and when the run was recorded, how long it took and how far it goes: label -> text, none of them empty."""
    noted = run.facts
    versions = [f"{name} {noted[name]}" for name in ("stabkit", "torch", "python") if noted.get(name)]
    autocast = [f"autocast {event.get('dtype')} from step {event.get('step')}" for event in _events(run, "autocast")]
    told = {
        "recorded by": ", ".join(versions) or run.source,
        "when": _when(run),
        "precision": ", ".join([str(noted.get("precision", "")), *autocast]).strip(", "),
        "planned": count(noted["total_steps"], "step") if noted.get("total_steps") else "",
        "processes": _processes(run),
        "budget": _budget(run),
        "thinned": _thinned(run),
        "disk": _disk(run),
        "updates": "measured from a copy of the weights" if noted.get("exact_updates") else "",
        **_sources(run),
    }
    return {label: text for label, text in told.items() if text}


def _budget(run: RunLog) -> str:
    """What was allowed, and what it came to of late."""
    if not run.facts.get("budget"):
        return ""
    told = _events(run, "cadence")
    came_to = f"; at last {told[-1].get('share', 0):.1%}, tensors at every {told[-1].get('every')}. step" if told else ""
    return f"{run.facts['budget']:.1%} of the time{came_to}"


def _thinned(run: RunLog) -> str:
    """That old tensor records were left out to keep the log small."""
    strides = sorted({int(event.get("stride", 0)) for event in _events(run, "thinned")})
    if not strides:
        return ""
    shares = " or ".join(map(str, strides))
    return f"of old steps one in {shares} kept its tensors, besides those that stand out and what surrounds them"


def _disk(run: RunLog) -> str:
    """That writing took seconds, and what was lost by it."""
    slow = _events(run, "slow_disk")
    took = [event["seconds"] for event in slow if isinstance(event.get("seconds"), float) and math.isfinite(event["seconds"])]
    if not took:
        return ""
    lost = sum(event["lost"] for event in slow if isinstance(event.get("lost"), int))
    return f"stalled, for {duration(max(took))} at most" + (f"; {count(lost, 'record')} found no room" if lost else "")


def _sources(run: RunLog) -> dict[str, str]:
    """Of a log of another tool: which column was taken for what, and which were left alone."""
    taken, guessed = run.facts.get("taken", {}), run.facts.get("guessed", ())
    named = [f"{quantity} = {column}" + ("" if quantity in guessed else " (as told)") for quantity, column in taken.items()]
    return {"columns": ", ".join(named), "no number in": listed(list(run.facts.get("text", ())), 12)}


def _processes(run: RunLog) -> str:
    """How many took part, and which ended before the others."""
    if not run.ranks:
        return ""
    last = {rank: int(np.max(streams[0].steps, initial=0)) if streams else 0 for rank, streams in run.ranks.items()}
    early = [f"rank {rank} ended at step {step}" for rank, step in last.items() if step < max(last.values())]
    shown = ", ".join(early[:4]) + (f" and {len(early) - 4} more" if len(early) > 4 else "")
    return f"{len(last)} with a log" + (f"; {shown}" if early else f", all as far as step {max(last.values())}")


def _when(run: RunLog) -> str:
    times = run.series("time").values if run.has("time") else np.empty(0)
    times = times[np.isfinite(times)]
    if not len(times):
        return ""
    took, pace = float(np.maximum(np.diff(times), 0).sum()), float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    start = datetime.fromtimestamp(float(times[0])).astimezone()
    return f"{start:%Y-%m-%d %H:%M %Z}, {duration(took)}" + (f", {duration(pace)} a step" if pace > 0 else "")


def _attempts(attempts: Sequence[RunLog], console: Console) -> None:
    for run in attempts[-_ATTEMPTS_SHOWN:]:
        begun = [event for event in _events(run, "attempt") if event.get("attempt") == run.attempt]
        resumed = [f"step {event.get('first_step')}" for event in begun if event.get("count")]
        joints = f"; resumed at {', '.join(resumed)}" if resumed else ""
        label = f"attempt {run.attempt}" if run.attempts > 1 else "steps"
        _labelled(label, extent(run) + joints, console)


def extent(run: RunLog) -> str:
    """Such as "1 to 200, 3 of them skipped; tensors measured at 200 of 200"."""
    steps, measured = run.steps, run.stream.tensor_steps
    if not len(steps):
        return "no steps"
    first, last = int(steps[0]), int(steps[-1])
    missing = last - first + 1 - len(steps)
    usual = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
    gaps = f", {count(missing, 'step')} missing in between" if missing else ""
    if missing and usual > 1 and "taken" in run.facts:  # a tool that logs now and then leaves no gaps
        gaps = f", usually every {usual}"
    skipped = int(np.nansum(run.series("skipped").values)) if run.has("skipped") else 0
    passed = f", {skipped:,} of them skipped" if skipped else ""
    tensors = f"; tensors measured at {int(np.sum(measured > 0)):,} of {len(steps):,}"
    return f"{first} to {last}{gaps}{passed}{tensors if len(measured) or 'taken' not in run.facts else ''}"


def kind(run: RunLog) -> str:
    """The optimizer's class, implementation and options, such as "AdamW, fused"; "" where nothing is known."""
    stream = run.stream
    options = [option for option, on in stream.options.items() if on]
    return ", ".join(part for part in (stream.optimizer, stream.implementation, *options) if part)


def marks(run: RunLog) -> list[str]:
    """What the user noted by `mark`."""
    return [f"step {event.get('step')}: {event.get('note')}" for event in _events(run, "mark")]


def _optimizer(run: RunLog, console: Console) -> None:
    stream = run.stream
    name = f"Optimizer {run.index}" if len(run.streams) > 1 else "Optimizer"
    if kind(run) or stream.tensors or "taken" not in run.facts:
        heading(console, f"{name}: {printable(kind(run))}" if kind(run) else name)
    groups = max((values.shape[1] for values in stream.group_values.values()), default=0)
    table = columns("group", "tensors", "parameters", *stream.group_values, right="group tensors parameters")
    for group in range(groups):
        owned = [tensor for tensor in stream.tensors if tensor.group == group]
        sizes = (str(group), f"{len(owned):,}", f"{sum(tensor.numel for tensor in owned):,}")
        table.add_row(*sizes, *(_course(values[:, group]) for values in stream.group_values.values()))
    if groups:
        show(console, table)
        console.print()
    roles = columns("role", "tensors", "parameters", "dtype", "such as", right="tensors parameters")
    for role in sorted({tensor.role for tensor in stream.tensors}):
        alike = [tensor for tensor in stream.tensors if tensor.role == role]
        dtypes = ", ".join(sorted({tensor.dtype for tensor in alike}))
        numbers = (f"{len(alike):,}", f"{sum(tensor.numel for tensor in alike):,}")
        example = f"{alike[0].name} {' x '.join(map(str, alike[0].shape))}"
        roles.add_row(printable(role), *numbers, printable(dtypes), Text(printable(example)))
    if stream.tensors:
        show(console, roles)


def _course(values: Array) -> str:
    """How a hyperparameter went: one number where it stayed, else its range and its last value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "-"
    low, high, last = float(known.min()), float(known.max()), float(known[-1])
    return number(last) if low == high else f"{number(low)} to {number(high)}, last {number(last)}"


def _quantities(run: RunLog, console: Console) -> None:
    scopes = {"step": "Per step", "group": "Per parameter group", "tensor": "Per tensor", "layer": "Per layer"}
    for scope, title in scopes.items():
        metrics = [metric for (_, of), metric in METRICS.items() if of == scope]
        present = [metric for metric in metrics if run.has(metric.name, scope)]
        heading(console, f"{title}: {len(present)} of {len(metrics)} quantities")
        if present:
            hang(console, ", ".join(_with_coverage(run, metric) for metric in present))
        absent: dict[str, list[str]] = {}
        for metric in metrics:
            if metric not in present:
                absent.setdefault(_why_absent(run, metric), []).append(metric.name)
        for reason, names in absent.items():
            hang(console, Text(f"absent: {', '.join(names)} ({printable(reason)})", "dim"))


def _why_absent(run: RunLog, metric: Metric) -> str:
    """The reason the recorder gave, or else what would have recorded the quantity."""
    missing = run.stream.missing
    reasons = dict.fromkeys(missing[name] for name in (*metric.columns, metric.name) if name in missing)
    return "; ".join(reasons) or f"recorded by {metric.recorded_by}"


def _with_coverage(run: RunLog, metric: Metric) -> str:
    """The metric's name, and at how many steps it has a value where that is not all."""
    if metric.scope in ("tensor", "layer"):
        table = run.table(metric.name)
        known = ~np.all(np.isnan(table.values), axis=1) & (table.steps > 0)
        total = int(np.sum(table.steps > 0))
    else:
        known = ~np.isnan(run.series(metric.name).values)
        total = len(run.steps)
    there = int(np.sum(known))
    return metric.name if there >= total else f"{metric.name} ({there:,} of {total:,})"


def _scalars(run: RunLog, console: Console) -> None:
    own = {name: of for name, of in run.scalars.items() if not _of_vocabulary(name)}
    if own:
        heading(console, "Left as they are" if "taken" in run.facts else "Logged by you")
        points = (f"{printable(name)} ({count(len(steps), 'point')})" for name, (steps, _) in own.items())
        hang(console, ", ".join(points))


def _of_vocabulary(name: str) -> bool:
    """Whether numbers beside the records are a quantity that is listed with the others."""
    return (name, "step") in METRICS or (name.partition("/")[0], "layer") in METRICS


def _events(run: RunLog, kind: str) -> list[Mapping[str, Any]]:
    return [event for event in run.events if event.get("event") == kind]


def _fault(event: Mapping[str, Any]) -> str:
    stopped = "; the recorder stopped here" if event.get("stopped") else ""
    return f"in {event.get('where')}, {event.get('place')}: {event.get('error')}{stopped}"


def _bullets(title: str, items: Iterable[str], console: Console) -> None:
    texts = list(items)
    if texts:
        heading(console, title)
    for text in texts[:_NOTES_SHOWN]:
        hang(console, printable(text), "  - ", indent=4)
    if len(texts) > _NOTES_SHOWN:
        hang(console, Text(f"and {len(texts) - _NOTES_SHOWN:,} more", "dim"), indent=4)


def _labelled(label: str, text: str, console: Console) -> None:
    if text:
        hang(console, printable(text), Text(label, "dim"), indent=_LABEL)
