"""Reads a log back: whole, live, torn or damaged. What is left is read; what is missing is told."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.errors import LogVersionError, UsageError
from stabkit.metric import Array
from stabkit.runlog.assemble import assemble
from stabkit.runlog.batches import batches_of, joined_batches
from stabkit.runlog.format import SCHEMA_VERSION
from stabkit.runlog.lines import read_lines
from stabkit.runlog.locate import local_copy, ranks_to_read, stream_folders
from stabkit.runlog.ranks import Part, joined_events, merge
from stabkit.runlog.record import Layout
from stabkit.runlog.recovery import Manifest, read_manifest
from stabkit.runlog.run import RunLog, Steps, Stream
from stabkit.runlog.segments import Segment, read_segments
from stabkit.runlog.unseen import without_unseen

__all__ = ["load"]

Line = Mapping[str, Any]
_SPELLED = ("nan", "inf", "-inf")
_MOST_RANKS = 100_000  # as many as directories can be named for


def load(path: str | os.PathLike[str], attempt: int | None = None) -> RunLog:
    """Read a run.

    Args:
        path: The run's directory, as given to `stabkit.watch`; or a URL of it that fsspec knows, such as "s3://bucket/run".
        attempt: Which attempt, from 0; the last one by default.

    Returns:
        The run; what was wrong with the files is in its `notes`. Tensor columns are read when they are first asked for.

    Raises:
        NotALogError: there is nothing here, or nothing that stabkit wrote.
        LogVersionError: written in a format this version does not know.
        UsageError: there is no such attempt, or a URL needs a package that is not installed.
    """
    with local_copy(path) as root:
        return _load(root, os.fspath(path), attempt)


def _load(root: Path, name: str, attempt: int | None) -> RunLog:
    ranks = {rank: _Rank(directory, name) for rank, directory in ranks_to_read(root).items()}
    attempts = 1 + max(rank.last_attempt for rank in ranks.values())
    chosen = attempts - 1 if attempt is None else attempt
    if not 0 <= chosen < attempts:
        raise UsageError(f"{name} has attempts 0 to {attempts - 1}; there is no attempt {attempt}")
    run = _run(ranks, name, chosen, attempts, attempt is None)
    if not chosen:
        return run
    return replace(run, previous=cache(lambda: _run(ranks, name, chosen - 1, attempts, False)))


def _run(ranks: Mapping[int, _Rank], name: str, chosen: int, attempts: int, by_default: bool) -> RunLog:
    """One attempt, of all ranks."""
    about = [f"{attempts} attempts in this directory; this is the last one"] if attempts > 1 and by_default else []
    logs = {rank: one.log(name, chosen, attempts) for rank, one in ranks.items()}
    lowest = next(iter(ranks))
    told = [note for rank, one in ranks.items() for note in _prefixed(one.notes, f"rank {rank}: " if rank != lowest else "")]
    if len(logs) == 1:
        run = logs[lowest][0]
        return replace(run, notes=(*told, *about, *run.notes, *_absent(run, [*logs])))
    return _together({rank: one for rank, (one, _) in logs.items()}, {r: p for r, (_, p) in logs.items()}, [*told, *about])


def _together(logs: Mapping[int, RunLog], parts: Mapping[int, list[Part]], notes: list[str]) -> RunLog:
    """The runs of several ranks as one."""
    lowest = next(iter(logs))
    streams = []
    for index in range(max(len(own) for own in parts.values())):
        held = [replace(own[index], rank=rank) for rank, own in parts.items() if index < len(own)]
        stream, remarks = merge(held)
        streams.append(replace(stream, batches=joined_batches([part.stream for part in held])))
        several = f"optimizer{index}: " if len(parts[lowest]) > 1 else ""
        notes += _prefixed(remarks, several)
    for rank, run in logs.items():
        notes += _prefixed(run.notes, f"rank {rank}: ")
    scalars = {name: points for run in reversed(list(logs.values())) for name, points in run.scalars.items()}
    return replace(
        logs[lowest],
        streams=tuple(streams) or logs[lowest].streams,
        events=joined_events({rank: run.events for rank, run in logs.items()}),
        scalars=scalars,
        notes=tuple(notes + _absent(logs[lowest], [*logs])),
        ranks={rank: run.streams for rank, run in logs.items()},
    )


def _absent(run: RunLog, ranks: Sequence[int]) -> list[str]:
    """Which ranks of the run there is no log of."""
    world = run.facts.get("world_size", 1)
    if not isinstance(world, int) or not len(ranks) < world <= _MOST_RANKS:
        return []
    missing = sorted({*range(world)} - {*ranks})
    which = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    what = f"there is no log of rank {which}" if len(missing) == 1 else f"there are no logs of ranks {which}"
    return [f"{what}: the run had {world} processes"]


def _prefixed(notes: Iterable[str], prefix: str) -> list[str]:
    return [prefix + note for note in notes]


class _Rank:
    """All that is on disk of one rank."""

    def __init__(self, directory: Path, name: str) -> None:
        self.manifest = read_manifest(directory)
        _check_version(self.manifest, name)
        sizes = self.manifest.line_bytes
        self._events, event_notes = read_lines(directory / "events.jsonl", sizes.get("events.jsonl", 0))
        self._scalars, scalar_notes = read_lines(directory / "scalars.jsonl", sizes.get("scalars.jsonl", 0))
        self._recorded = [_Recorded(directory, i, self.manifest) for i in range(_optimizers(directory, self.manifest))]
        if any(one.unknown_layout for one in self._recorded):  # of a live run: it has been noted since, before its records
            self.manifest = read_manifest(directory)
            for index, one in enumerate(self._recorded):
                one.layouts = self.manifest.layouts.get(index, [])
        self.notes = [*self.manifest.notes, *event_notes, *scalar_notes, *(n for one in self._recorded for n in one.notes)]

    @property
    def last_attempt(self) -> int:
        """The last attempt that made a step; 0 where there is none."""
        return max([0, *(one.last_attempt for one in self._recorded)])

    def log(self, name: str, attempt: int, attempts: int) -> tuple[RunLog, list[Part]]:
        """One attempt, and its streams as parts of the whole."""
        events = _of_attempt(self._events, attempt, attempts)
        ends = [event["event"] == "close" for event in events if event.get("event") in ("open", "close")]
        lines = _of_attempt(self._scalars, attempt, attempts)
        parts, notes = [], []
        for index, one in enumerate(self._recorded):
            stream, numbers, remarks = assemble(one.steps, one.tensors, one.layouts, attempt)
            stream = without_unseen(replace(stream, batches=batches_of(stream, lines, index == 0)), events)
            parts.append(Part(0, stream, one.layouts, numbers, bool(ends and ends[-1])))
            notes += _prefixed(remarks, f"optimizer{index}: " if len(self._recorded) > 1 else "")
        run = RunLog(
            path=name,
            source="stabkit",
            streams=tuple(part.stream for part in parts) or (Stream(np.empty(0, np.int64)),),
            attempt=attempt,
            attempts=attempts,
            facts=self.manifest.facts,
            events=tuple(events),
            scalars=_scalars(lines),
            notes=tuple(notes),
        )
        return run, parts


class _Recorded:
    """All that is on disk of one optimizer."""

    def __init__(self, directory: Path, index: int, manifest: Manifest) -> None:
        folder = directory / f"optimizer{index}"
        self.layouts: Sequence[Layout | None] = manifest.layouts.get(index, [])
        # Tensors first: a live writer adds the step before its tensors, so no tensors are seen whose step is not.
        self.tensors, notes = read_segments(folder, "tensors")
        self.steps, more = read_segments(folder, "steps")
        self.notes = [*more, *notes]

    @property
    def unknown_layout(self) -> bool:
        """Whether a record has a layout that run.json did not know."""
        return any(int(np.max(segment["layout"], initial=-1)) >= len(self.layouts) for segment in self.tensors)

    @property
    def last_attempt(self) -> int:
        """The last attempt that made a step; -1 where there is none."""
        return max((_last_attempt(segment) for segment in (*self.steps, *self.tensors)), default=-1)


def _last_attempt(segment: Segment) -> int:
    return int(np.max(segment["attempt"][segment["step"] > 0], initial=-1))


def _optimizers(directory: Path, manifest: Manifest) -> int:
    """How many optimizers there are; one that has not stepped yet may have no folder."""
    return 1 + max([*stream_folders(directory), *manifest.layouts], default=-1)


def _check_version(manifest: Manifest, name: str) -> None:
    if manifest.schema is None or manifest.schema == SCHEMA_VERSION:
        return
    older = isinstance(manifest.schema, int) and manifest.schema < SCHEMA_VERSION
    raise LogVersionError(
        f"{name} was written in log format {manifest.schema}; this version of stabkit reads format {SCHEMA_VERSION}. "
        + ("Read it with the stabkit that wrote it." if older else "Update stabkit to read it: pip install -U stabkit")
    )


def _of_attempt(lines: Sequence[Line], attempt: int, attempts: int) -> list[Line]:
    """The lines of an attempt. What was written before the number was known belongs to the next that was."""
    kept, current = [], attempts - 1
    for line in reversed(lines):
        number = line.get("attempt")
        current = number if isinstance(number, int) else current
        if current == attempt:
            kept.append(line)
    return kept[::-1]


def _scalars(lines: Sequence[Line]) -> dict[str, tuple[Steps, Array]]:
    """The numbers the user logged, by name: (steps, values). Identifiers stay in the file; they are no series."""
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        step, values = line.get("step"), line.get("values")
        if not isinstance(step, int) or not isinstance(values, dict) or abs(step) >= 2**63:
            continue
        for name, value in values.items():
            number = _number(value)
            if number is not None:
                points.setdefault(name, {})[step] = number
    return {
        name: (np.array(sorted(found), dtype=np.int64), np.array([found[s] for s in sorted(found)], dtype=np.float64))
        for name, found in points.items()
    }


def _number(value: Any) -> float | None:
    """A number as JSON gives it back, the ones that are not finite spelled out; None for anything else."""
    if isinstance(value, (int, float)) or value in _SPELLED:
        try:
            return float(value)
        except OverflowError:
            return None
    return None
