"""Reads a log back: whole, live, torn or damaged. What is left is read; what is missing is told."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.errors import LogVersionError, NotALogError, UsageError
from stabkit.metric import Array
from stabkit.runlog.format import (
    COLUMN_NAMES,
    HEADER_BYTES,
    SCHEMA_VERSION,
    npy_header,
    step_dtype,
    tensor_dtype,
    valid_records,
)
from stabkit.runlog.record import GROUP_FIELDS, STEP_FIELDS, Layout, TensorInfo
from stabkit.runlog.recovery import Manifest, read_lines, read_manifest
from stabkit.runlog.run import RunLog, Stream

__all__ = ["load"]

Records = np.ndarray[Any, Any]
_INTERNAL = ("step", "attempt", "layout")


def load(path: str | os.PathLike[str], attempt: int | None = None) -> RunLog:
    """Read a run.

    Args:
        path: The run's directory, as given to `stabkit.watch`.
        attempt: Which attempt, from 0; the last one by default.

    Returns:
        The run; what was wrong with the files is in its `notes`.

    Raises:
        NotALogError: there is nothing here, or nothing that stabkit wrote.
        LogVersionError: written in a format this version does not know.
        UsageError: there is no such attempt.
    """
    root = Path(path)
    directory = _rank_directory(root)
    manifest = read_manifest(directory)
    if manifest.schema is not None and manifest.schema != SCHEMA_VERSION:
        raise LogVersionError(
            f"{root} was written in log format {manifest.schema}; this version of stabkit reads format {SCHEMA_VERSION}. "
            "Update stabkit to read it: pip install -U stabkit"
        )
    events, broken = read_lines(directory / "events.jsonl")
    notes = list(manifest.notes)
    if broken:
        notes.append(f"events.jsonl: {_some(broken, 'damaged line')} left out")

    folders = sorted(directory.glob("optimizer*"))
    raw = [_read_stream(folder, manifest.layouts.get(int(folder.name[9:]), []), notes) for folder in folders]
    attempts = 1 + max((int(r["attempt"].max()) for steps, _ in raw for r, _ in steps if len(r)), default=0)
    chosen = attempts - 1 if attempt is None else attempt
    if not 0 <= chosen < attempts:
        raise UsageError(f"{root} has attempts 0 to {attempts - 1}; there is no attempt {attempt}")
    if attempts > 1 and attempt is None:
        notes.append(f"{attempts} attempts in this directory; the last one is judged")
    streams = tuple(_assemble(steps, tensors, chosen, notes) for steps, tensors in raw)
    return RunLog(
        path=str(path),
        source="stabkit",
        streams=streams or (Stream(np.empty(0, np.int64)),),
        attempt=chosen,
        attempts=attempts,
        facts=manifest.facts,
        events=tuple(events),
        scalars=_scalars(directory, notes),
        notes=tuple(notes),
    )


def _rank_directory(root: Path) -> Path:
    """Where rank 0's files lie, or a NotALogError that says what was found instead."""
    if not root.exists():
        raise NotALogError(f"there is no {root}. Give the directory that was passed to stabkit.watch.")
    if root.is_file():
        raise NotALogError(f"{root} is a file that stabkit did not write. Give the run's directory.")
    for directory in (*sorted(root.glob("rank[0-9]*")), root):
        if any((directory / name).exists() for name in ("run.json", "events.jsonl")) or any(directory.glob("optimizer*/*.npy")):
            return directory
    inside = sorted(p.parent.parent.name for p in root.glob("*/rank00000/run.json"))
    if inside:
        raise NotALogError(f"{root} holds several runs: {', '.join(inside[:8])}. Give one of them, or {root}/*.")
    if not any(root.iterdir()):
        raise NotALogError(f"{root} is empty. Was the run started, and was its logdir another one?")
    raise NotALogError(f"{root} holds no log that stabkit wrote. Give the directory that was passed to stabkit.watch.")


Located = tuple[Records, list[Layout]]


def _read_stream(folder: Path, layouts: list[Layout], notes: list[str]) -> tuple[list[Located], list[Located]]:
    """The undamaged records of every segment of a stream, steps and tensors apart, oldest first."""
    found: dict[str, list[Located]] = {"steps": [], "tensors": []}
    for kind, segments in found.items():
        for path in sorted(folder.glob(f"{kind}-*.npy")):
            records = _read_segment(path, _candidates(kind, layouts), notes)
            if records is not None:
                segments.append((records, layouts))
    return found["steps"], found["tensors"]


def _candidates(kind: str, layouts: list[Layout]) -> list[np.dtype[Any]]:
    """The record types a segment may have, most recent layout first; asked only where its own header is damaged."""
    if kind == "steps":
        return [step_dtype(layout.groups) for layout in reversed(layouts)] or [step_dtype(1)]
    return [tensor_dtype(len(layout.tensors)) for layout in reversed(layouts)]


def _read_segment(path: Path, candidates: list[np.dtype[Any]], notes: list[str]) -> Records | None:
    data = path.read_bytes()
    claimed = _claimed(data[:HEADER_BYTES])
    if claimed is None:
        notes.append(f"{path.parent.name}/{path.name}: the header is damaged; the records were read by their checksums")
    for dtype in [claimed[0]] if claimed else candidates:
        count, rest = divmod(max(len(data) - HEADER_BYTES, 0), dtype.itemsize)
        records = np.frombuffer(data, dtype, count=count, offset=HEADER_BYTES) if count else np.empty(0, dtype)
        good = valid_records(records)
        if claimed is None and count and not good.any():
            continue
        where = f"{path.parent.name}/{path.name}"
        if rest:
            notes.append(f"{where}: the last record is torn (the step in flight when the process ended)")
        if not good.all():
            notes.append(f"{where}: {_some(int((~good).sum()), 'damaged record')} left out")
        if claimed and claimed[1] is not None and count < claimed[1]:
            notes.append(f"{where}: {_some(claimed[1] - count, 'record')} missing at the end of a closed segment")
        return records[good]
    return None


def _claimed(header: bytes) -> tuple[np.dtype[Any], int | None] | None:
    """The record type in a segment's header and the count of a closed one; None where the header is damaged."""
    try:
        described = ast.literal_eval(header[12:].decode("latin1").strip())
        dtype = np.lib.format.descr_to_dtype(described["descr"])
        count = int(described["shape"][0])
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError, MemoryError, RecursionError):
        return None
    # A flipped bit may leave the header readable and wrong: it must be, byte for byte, one that stabkit writes.
    if dtype.names is None or dtype.names[-1] != "crc" or npy_header(dtype, count) != header:
        return None
    known = step_dtype(dtype["group"].shape[0]) if "group" in dtype.names else None
    if known is None and "values" in dtype.names:
        known = tensor_dtype(dtype["values"].shape[0])
    if known != dtype:
        return None
    from stabkit.runlog.format import SEGMENT_STEPS

    return dtype, (count if count != SEGMENT_STEPS else None)


def _assemble(steps: list[Located], tensors: list[Located], attempt: int, notes: list[str]) -> Stream:
    """One attempt as arrays. Where steps overlap (a resume from an older checkpoint) the later record wins."""
    rows = _latest(steps, attempt, notes)
    order = np.array(sorted(rows), dtype=np.int64)
    step_values = {
        name: np.array([rows[s][0][name] for s in order.tolist()], dtype=np.float64)
        for name in STEP_FIELDS
        if name not in _INTERNAL
    }
    if "applied_steps" in step_values:
        applied = step_values["applied_steps"]
        step_values["applied_steps"] = np.where(applied < 0, np.nan, applied)
    groups = max((len(rows[s][0]["group"]) for s in rows), default=0)
    group_values = {name: np.full((len(order), groups), np.nan) for name in GROUP_FIELDS}
    for i, s in enumerate(order.tolist()):
        for name, values in group_values.items():
            here = rows[s][0]["group"][name]
            values[i, : len(here)] = here

    measured = {s: row for s, row in _latest(tensors, attempt, []).items() if s in rows or s == 0}
    tensor_steps = np.array(sorted(measured), dtype=np.int64)
    layout, infos, columns = _columns(measured, tensor_steps)
    if layout is None:  # no tensors: still tell what the optimizer was
        known = [layouts for _, layouts in steps if layouts]
        layout = known[-1][-1] if known else Layout(())
    return Stream(
        order, step_values, group_values, infos, tensor_steps, columns,
        layout.optimizer, layout.implementation, dict(layout.options),
    )  # fmt: skip


def _latest(segments: list[Located], attempt: int, notes: list[str]) -> dict[int, tuple[Any, list[Layout]]]:
    rows: dict[int, tuple[Any, list[Layout]]] = {}
    overlap = 0
    for records, layouts in segments:
        for record in records[records["attempt"] == attempt]:
            step = int(record["step"])
            overlap += step in rows
            rows[step] = (record, layouts)
    if overlap:
        notes.append(f"{_some(overlap, 'step')} recorded twice (resumed from an older checkpoint): the later record counts")
    return rows


def _columns(
    rows: dict[int, tuple[Any, list[Layout]]], steps: Iterable[int]
) -> tuple[Layout | None, tuple[TensorInfo, ...], dict[str, Array]]:
    """Columns [steps, tensors] over the union of the layouts' tensors, missing where a layout lacks one."""
    order = list(steps)
    place: dict[str, int] = {}
    infos: list[TensorInfo] = []
    layout = None
    names: list[list[int]] = []
    for s in order:
        record, layouts = rows[int(s)]
        number, width = int(record["layout"]), len(record["values"])
        layout = layouts[number] if 0 <= number < len(layouts) else None
        if layout is None or len(layout.tensors) != width:
            layout = Layout(tuple(TensorInfo(f"tensor{i}", ()) for i in range(width)))
        for info in layout.tensors:
            if info.name not in place:
                place[info.name] = len(infos)
                infos.append(info)
        names.append([place[info.name] for info in layout.tensors])
    values = np.full((len(order), len(infos), len(COLUMN_NAMES)), np.nan)
    for i, s in enumerate(order):
        values[i, names[i]] = rows[int(s)][0]["values"]
    return layout, tuple(infos), {name: values[:, :, i] for i, name in enumerate(COLUMN_NAMES)} if order else {}


def _scalars(directory: Path, notes: list[str]) -> dict[str, tuple[Any, Any]]:
    lines, damaged = read_lines(directory / "scalars.jsonl")
    if damaged:
        notes.append(f"scalars.jsonl: {_some(damaged, 'damaged line')} left out")
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line["values"].items():
            try:
                points.setdefault(name, {})[int(line["step"])] = float(value)
            except (TypeError, ValueError):  # an identifier, not a number: kept in the file, not a series
                continue
    return {
        name: (np.array(sorted(p), dtype=np.int64), np.array([p[s] for s in sorted(p)], dtype=np.float64))
        for name, p in points.items()
    }


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def manifest_of(path: str | os.PathLike[str]) -> Manifest:
    """What run.json says of a run, for `stabkit info`."""
    return read_manifest(_rank_directory(Path(path)))
