"""Files that only grow: every record and every line is one `write`, and a write that did not go through is taken back.

A killed process therefore loses the record in flight and nothing else; a full disk, the records that found no room. A file that
was deleted takes what was in it along; what comes then goes into a new one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.runlog.format import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    SEGMENT_STEPS,
    Records,
    npy_header,
    seal,
    segment_name,
    step_dtype,
    tensor_dtype,
)
from stabkit.runlog.lines import checksum_line
from stabkit.runlog.record import STEP_FIELDS, StepRecord

__all__ = ["LineFile", "StreamWriter"]

_LEAST = 64
_ONE = step_dtype(1)
_OF_STEP = attrgetter(*(name for name in _ONE.names or () if name in STEP_FIELDS))
_OF_GROUP = attrgetter(*(_ONE["group"].base.names or ()))
_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class LineFile:
    """A .jsonl file, opened when the first line comes. Lines may come from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._file: int | None = None
        self._lock = threading.Lock()

    def append(self, value: dict[str, Any]) -> None:
        """Add a line. Raises OSError, and leaves the file as it was, where the disk refuses."""
        with self._lock:
            if self._file is not None and _deleted(self._file):
                self._let_go()
            if self._file is None:
                self._file = os.open(self._path, os.O_CREAT | os.O_APPEND | _FLAGS, 0o644)
            try:
                _write_whole(self._file, checksum_line(value), at=os.lseek(self._file, 0, os.SEEK_END))
            finally:
                if self._closed:
                    self._let_go()

    def anew(self) -> None:
        """The next line goes into what is then found at the path."""
        with self._lock:
            self._let_go()

    def size(self) -> int:
        """Length in bytes, 0 where there is no file."""
        return self._path.stat().st_size if self._path.exists() else 0

    def close(self) -> None:
        """Close the file; a later line opens it for itself alone."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class SegmentFile:
    """One open .npy file of fixed-size records."""

    def __init__(self, directory: Path, kind: str, dtype: np.dtype[Any], capacity: int) -> None:
        self.dtype = dtype
        self.count, self.capacity = 0, capacity
        self._record = np.zeros(1, dtype)
        self._file = os.open(_new_file(directory, kind, npy_header(dtype, capacity, closed=False)), _FLAGS)

    @property
    def deleted(self) -> bool:
        """Whether nobody will ever read it."""
        return _deleted(self._file)

    def append(self, fill: Callable[[Records], None]) -> None:
        """Add the record that `fill` sets the fields of. On OSError the file still ends in a whole record."""
        fill(self._record)
        _write_whole(self._file, seal(self._record), at=HEADER_BYTES + self.count * self.dtype.itemsize)
        self.count += 1

    def close(self) -> None:
        """Write the true count into the header: from here on `numpy.load` opens the file."""
        try:
            _write_whole(self._file, npy_header(self.dtype, self.count, closed=True), at=0)
        finally:
            os.close(self._file)


class StreamWriter:
    """The records of one optimizer: a segment of steps and a segment of tensor columns.

    Args:
        directory: Where its segments go.
        segment_steps: How many records a segment takes; of tensors fewer, where they are large.
        rolled: Called when a segment of tensors is full and was closed.

    Attributes:
        gone: Whether what was written before is there no more, deleted or moved away. A new segment goes on in its place.
    """

    def __init__(
        self, directory: Path, segment_steps: int = SEGMENT_STEPS, rolled: Callable[[], None] = lambda: None
    ) -> None:
        self.directory = directory
        self._capacity = segment_steps
        self._rolled = rolled
        self._open: dict[str, SegmentFile] = {}
        self.gone = self._begun = False

    def write(self, record: StepRecord) -> None:
        """Append the step and then, where it was measured, its tensors: a tensor record always has its step before it.

        Raises:
            OSError: the disk refuses; a later record may go through again.
        """
        if record.step > 0:  # step 0 holds the weights at entry and nothing else
            self._segment("steps", step_dtype(len(record.groups))).append(lambda row: _fill_step(row, record))
        if record.tensors is not None:
            self._segment("tensors", tensor_dtype(len(record.tensors))).append(lambda row: _fill_tensors(row, record))

    def close(self) -> None:
        """Close what is open. The next record begins new segments, as it must where the layout changes."""
        failures = []
        while self._open:
            try:
                self._open.popitem()[1].close()
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _segment(self, kind: str, dtype: np.dtype[Any]) -> SegmentFile:
        segment = self._open.get(kind)
        if segment is not None and segment.deleted:
            self.gone = True
            self.close()
            segment = None
        if segment is not None and (segment.count >= segment.capacity or segment.dtype != dtype):
            del self._open[kind]
            segment.close()
            segment = None
            if kind == "tensors":
                self._rolled()
        if segment is None:
            self.gone |= self._begun and not self.directory.exists()
            self._begun = True
            self.directory.mkdir(parents=True, exist_ok=True)
            room = max(_LEAST, SEGMENT_BYTES // dtype.itemsize) if kind == "tensors" else self._capacity
            segment = self._open[kind] = SegmentFile(self.directory, kind, dtype, min(self._capacity, room))
        return segment


def _deleted(file: int) -> bool:
    return os.fstat(file).st_nlink == 0


def _new_file(directory: Path, kind: str, header: bytes) -> Path:
    """Make the next segment's file. It appears with its whole header, and no two writers ever make the same one."""
    taken = [int(path.stem[-6:]) for path in directory.glob(f"{kind}-[0-9][0-9][0-9][0-9][0-9][0-9].npy")]
    index = max(taken, default=-1) + 1
    while True:
        path = directory / segment_name(kind, index)
        draft = path.with_name(f".{path.name}.new")  # whoever holds the draft may make the file
        index += 1
        try:
            with open(draft, "xb") as file:
                file.write(header)
            if not path.exists():
                draft.rename(path)
                return path
            draft.unlink()
        except FileExistsError:  # another process is making it, or was killed while it did
            continue
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def _write_whole(file: int, data: bytes, at: int) -> None:
    """One write at an offset; where only a part of it went to disk, the part is taken back."""
    os.lseek(file, at, os.SEEK_SET)
    written = os.write(file, data)
    if written != len(data):
        os.ftruncate(file, at)
        raise OSError(errno.ENOSPC, "no space left on device: the record was not written")


def _fill_step(row: Records, record: StepRecord) -> None:
    row[0] = (*_OF_STEP(record), [_OF_GROUP(group) for group in record.groups], 0)


def _fill_tensors(row: Records, record: StepRecord) -> None:
    assert record.tensors is not None
    row["step"], row["time"], row["attempt"], row["layout"] = record.step, record.time, record.attempt, record.layout
    row["tensors"].view("<f8").reshape(len(record.tensors), -1)[...] = record.tensors
