"""Writes the log: every record is one `write` to a file opened for append, so a killed process loses the step in flight only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.errors import LogVersionError
from stabkit.runlog.format import (
    HEADER_BYTES,
    SCHEMA_VERSION,
    SEGMENT_STEPS,
    checksum_line,
    npy_header,
    seal,
    segment_name,
    step_dtype,
    tensor_dtype,
)
from stabkit.runlog.record import STEP_FIELDS, Layout, StepRecord
from stabkit.runlog.recovery import Manifest, read_manifest

__all__ = ["RunWriter", "claim_directory"]


class Segment:
    """One open .npy file of fixed-size records."""

    def __init__(self, directory: Path, kind: str, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.count = 0
        self._record = np.zeros(1, dtype)
        index = _next_index(directory, kind)
        while True:
            try:  # O_EXCL: no two writers ever share a segment
                path = directory / segment_name(kind, index)
                self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
                break
            except FileExistsError:
                index += 1
        _write_whole(self._file, npy_header(dtype, SEGMENT_STEPS), at=0)

    def append(self, fill: Callable[[np.ndarray[Any, Any]], None]) -> None:
        """Add the record that `fill` sets the fields of. On OSError (a full disk) the file keeps its last whole record."""
        fill(self._record)
        _write_whole(self._file, seal(self._record), at=HEADER_BYTES + self.count * self.dtype.itemsize)
        self.count += 1

    def close(self) -> None:
        """Write the true count into the header: from here on `numpy.load` opens the file."""
        try:
            os.pwrite(self._file, npy_header(self.dtype, self.count), 0)
        finally:
            os.close(self._file)


class StreamWriter:
    """The records of one optimizer: a segment of steps and a segment of tensor columns, renewed together or apart."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, Segment] = {}

    def write(self, record: StepRecord) -> None:
        """Append the step and, where it was measured, its tensors."""
        if record.tensors is not None:  # first, so that a step that is in the log has its tensors there too
            self._segment("tensors", tensor_dtype(len(record.tensors))).append(lambda row: _fill_tensors(row, record))
        if record.step > 0:  # step 0 holds the weights at entry and nothing else
            self._segment("steps", step_dtype(len(record.groups))).append(lambda row: _fill_step(row, record))

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close()

    def _segment(self, kind: str, dtype: np.dtype[Any]) -> Segment:
        segment = self._open.get(kind)
        if segment is None or segment.count >= SEGMENT_STEPS or segment.dtype != dtype:
            if segment is not None:
                del self._open[kind]
                segment.close()
            self.directory.mkdir(parents=True, exist_ok=True)
            segment = self._open[kind] = Segment(self.directory, kind, dtype)
        return segment

    def new_segment(self) -> None:
        """Begin new segments with the next record: the layout changes, though the record size may not."""
        self.close()


class RunWriter:
    """Writes one process's part of a run: `<run>/rank00000`. Not thread-safe; belongs to the process that made it."""

    def __init__(self, run: str | os.PathLike[str], facts: dict[str, Any], rank: int = 0) -> None:
        """Open the run, making the directory.

        Args:
            run: The run's directory.
            facts: What `run.json` should say of this process: versions, precision and so on.
            rank: Rank of this process.

        Raises:
            OSError: the directory cannot be written.
            LogVersionError: the directory holds a log of another format version.
        """
        self.directory = Path(run) / f"rank{rank:05d}"
        self.directory.mkdir(parents=True, exist_ok=True)
        manifest = read_manifest(self.directory)
        if manifest.schema not in (None, SCHEMA_VERSION):
            raise LogVersionError(
                f"{self.directory} holds a log of format {manifest.schema}; this stabkit writes format {SCHEMA_VERSION}. "
                "Choose another directory for this run."
            )
        self.manifest = Manifest(SCHEMA_VERSION, dict(manifest.facts) | facts, {k: list(v) for k, v in manifest.layouts.items()})
        self._streams: dict[int, StreamWriter] = {}
        self._lines: dict[str, int] = {}
        self._save_manifest()

    def layout(self, optimizer: int, layout: Layout) -> int:
        """The number of this layout in the optimizer's stream; a new one opens new segments and is noted as an event."""
        known = self.manifest.layouts.setdefault(optimizer, [])
        if optimizer in self._streams:
            self._streams[optimizer].new_segment()
        if layout in known:
            return known.index(layout)
        known.append(layout)
        self.event("layout", optimizer=optimizer, index=len(known) - 1, layout=layout.to_json())
        self._save_manifest()
        return len(known) - 1

    def begin_attempt(self, optimizer: int, count: int, first_step: int | None = None) -> tuple[int, int]:
        """Decide where a stream goes on, and note it as an event.

        Args:
            optimizer: The optimizer's index.
            count: How many steps it has counted: at 0 a new attempt begins, otherwise the last one continues.
            first_step: The number of the coming step, where the user gave it.

        Returns:
            The attempt, from 0, and the number of the coming step.
        """
        attempts = self.manifest.facts.setdefault("attempts", {})
        last = attempts.get(str(optimizer), -1)
        attempt = max(last, 0) if count > 0 else last + 1
        step = first_step if first_step is not None else max(count, 0) + 1
        attempts[str(optimizer)] = attempt
        if optimizer in self._streams:
            self._streams[optimizer].new_segment()
        self.event("attempt", optimizer=optimizer, attempt=attempt, first_step=step, count=count)
        self._save_manifest()
        return attempt, step

    def write(self, optimizer: int, record: StepRecord) -> None:
        """Append a step to an optimizer's stream. Raises OSError where the disk refuses."""
        if optimizer not in self._streams:
            self._streams[optimizer] = StreamWriter(self.directory / f"optimizer{optimizer}")
        self._streams[optimizer].write(record)

    def event(self, event: str, **details: Any) -> None:
        """Append to events.jsonl."""
        self._line("events.jsonl", {"event": event, "time": time.time(), **details})

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Append the user's own numbers to scalars.jsonl."""
        self._line("scalars.jsonl", {"step": step, "time": time.time(), "values": values})

    def note_facts(self, **facts: Any) -> None:
        """Add to what run.json says of the run."""
        self.manifest.facts.update(facts)
        self._save_manifest()

    def close(self) -> None:
        """Close every file; closed segments open with `numpy.load`."""
        for stream in self._streams.values():
            stream.close()
        while self._lines:
            os.close(self._lines.popitem()[1])

    def _line(self, name: str, value: dict[str, Any]) -> None:
        if name not in self._lines:
            self._lines[name] = os.open(self.directory / name, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        os.write(self._lines[name], checksum_line(value))

    def _save_manifest(self) -> None:
        path = self.directory / "run.json"
        draft = path.with_name(f".run.json.{os.getpid()}")
        draft.write_bytes(checksum_line(self.manifest.to_json()))
        os.replace(draft, path)


def claim_directory(run: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The directory this process may write: `run`, or the first free `run.2`, `run.3`, ... while another process writes it.

    Returns:
        The directory, and the descriptor of the lock to keep open until the end (None where locks are not to be had).
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows: no advisory locks; O_EXCL still keeps the segments apart
        return Path(run), None
    for attempt in range(1, 1000):
        path = Path(run) if attempt == 1 else Path(f"{os.fspath(run)}.{attempt}")
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:  # a file system without locks
            os.close(lock)
            return path, None
        return path, lock
    raise OSError(f"a thousand processes write beside {run}")


def _next_index(directory: Path, kind: str) -> int:
    taken = [int(path.stem.rpartition("-")[2]) for path in directory.glob(f"{kind}-*.npy") if path.stem[-6:].isdigit()]
    return max(taken, default=-1) + 1


def _write_whole(file: int, data: bytes, at: int) -> None:
    """One write at an offset; where only a part of it went to disk, the part is taken back."""
    written = os.pwrite(file, data, at)
    if written != len(data):
        os.ftruncate(file, at)
        raise OSError(28, "no space left on device: the record was not written")


def _fill_step(row: np.ndarray[Any, Any], record: StepRecord) -> None:
    for name in STEP_FIELDS:
        row[name] = getattr(record, name)
    row["group"] = [[astuple(group) for group in record.groups]]


def _fill_tensors(row: np.ndarray[Any, Any], record: StepRecord) -> None:
    row["step"], row["attempt"], row["layout"] = record.step, record.attempt, record.layout
    row["values"][0] = record.tensors
