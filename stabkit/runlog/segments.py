"""Reads segments: whole, still being written, torn or damaged. Nothing is believed without its checksum."""

from __future__ import annotations

import mmap
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import recfunctions
from numpy.typing import NDArray

from stabkit.errors import LogVersionError
from stabkit.runlog.format import (
    CRC_BYTES,
    HEADER_BYTES,
    SCHEMA_VERSION,
    Header,
    Records,
    parse_header,
    step_dtype,
    tensor_dtype,
    valid_records,
)

__all__ = ["Segment", "read_segments"]

_LATELY = 2_000_000_000
"""Nanoseconds."""
_REMEMBERED = 512
"""Files whose records are remembered as checked: 2 million steps; at 4,096 rows each, 64 MB."""
_CHUNK = 8 * 2**20
"""Bytes checked at once."""
_RELEASE: int | None = getattr(mmap, "MADV_DONTNEED", None)
"""What tells the system that pages of a file are not needed any more; None where there is nothing of the kind."""
_State = tuple[str, int, int, int, np.dtype[Any]]
"""Path, inode, size, time of the last change, and what its records are."""
_checked: dict[_State, tuple[NDArray[np.int64], Records]] = {}

_REPEATED = {"steps": "group", "tensors": "tensors"}
"""The field of a record that holds a row for each group or tensor."""
_PATTERN = "-[0-9][0-9][0-9][0-9][0-9][0-9].npy"


@dataclass(frozen=True)
class Segment:
    """The records of a segment.

    Attributes:
        records: Every whole record, memory-mapped [n].
        rows: Which of them are undamaged, in the order of writing.
        heads: What of the undamaged ones is not about single tensors, in memory: to look at it in the file would map all of it.
        mapped: The mapping, None where there is no record.
    """

    records: Records
    rows: NDArray[np.int64]
    heads: Records
    mapped: mmap.mmap | None = None

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """A field of the undamaged records, copied; NaN where this segment's format does not have it."""
        if name in (self.heads.dtype.names or ()):
            return np.array(self.heads[name])
        if name not in (self.records.dtype.names or ()):
            return np.full(len(self.rows), np.nan)
        values: np.ndarray[Any, Any] = self.records[name][self.rows]
        return values

    def release(self, first: int, stop: int) -> None:
        """Unmap the pages of some records: they stay in the system's cache, but no longer count as this process's memory."""
        if self.mapped is not None:
            _release(self.mapped, first, stop, self.records.itemsize)


def read_segments(folder: Path, kind: str, last: int | None = None) -> tuple[list[Segment], list[str]]:
    """The segments of a stream, oldest first, and a sentence for each thing that was wrong with them.

    Args:
        folder: The stream's directory, such as `rank00000/optimizer0`.
        kind: "steps" or "tensors".
        last: How many to read, of the latest; all of them where this is left out.

    Raises:
        LogVersionError: a segment is of a format this version does not know.
    """
    segments: list[Segment] = []
    notes: list[str] = []
    headers: dict[Path, Header | None] = {}
    for path in sorted(folder.glob(kind + _PATTERN))[-last if last else None :]:
        try:
            headers[path] = _header(path, kind)
        except OSError as error:
            notes.append(f"{folder.name}/{path.name}: cannot be read ({error.strerror})")
    siblings = {header.dtype for header in headers.values() if header and header.dtype is not None}
    for path, header in headers.items():
        segment, problems = _read(path, header) if header else _read_without_header(path, kind, siblings)
        notes.extend(f"{folder.name}/{path.name}: {problem}" for problem in problems)
        if segment is not None:
            segments.append(segment)
    return segments, notes


def _header(path: Path, kind: str) -> Header | None:
    """What the header says; None where it is damaged, or that of a segment of the other kind."""
    for _ in range(2):  # the first look may have come while the writer was closing the segment
        with open(path, "rb") as file:
            header = parse_header(file.read(HEADER_BYTES))
        if header is not None:
            names = header.dtype.names if header.dtype is not None else None
            return header if names is None or _REPEATED[kind] in names else None
    return None


def _read(path: Path, header: Header) -> tuple[Segment, list[str]]:
    if header.dtype is None:
        raise LogVersionError(
            f"{path} was written in log format {header.schema}; this version of stabkit reads format {SCHEMA_VERSION}. "
            "Update stabkit to read it: pip install -U stabkit"
        )
    segment, rest = _map(path, header.dtype)
    return segment, list(_problems(segment, rest, header.count))


def _map(path: Path, dtype: np.dtype[Any]) -> tuple[Segment, int]:
    """The segment, and how many bytes of an incomplete record follow it."""
    about = path.stat()
    count, rest = divmod(max(about.st_size - HEADER_BYTES, 0), dtype.itemsize)
    records: Records = np.empty(0, dtype)
    mapped: mmap.mmap | None = None
    if count:
        file = np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(count,))
        records, mapped = file.view(np.ndarray), getattr(file, "_mmap", None)
    rows, heads = _undamaged((str(path), about.st_ino, about.st_size, about.st_mtime_ns, dtype), records, mapped)
    return Segment(records, rows, heads, mapped), rest


def _undamaged(state: _State, records: Records, mapped: mmap.mmap | None) -> tuple[NDArray[np.int64], Records]:
    """Which records are undamaged, and their heads. A file that has not changed since it was checked is not checked again.

    Whoever looks at a run over and over would read all of it every time. What was written lately is always checked: file
    systems keep times in steps, and a change within one would go unseen.
    """
    found = _checked.get(state)
    if found is None:
        found = _check(records, mapped)
        if time.time_ns() - state[3] > _LATELY:
            while len(_checked) >= _REMEMBERED:
                _checked.pop(next(iter(_checked)), None)
            _checked[state] = found
    return found


def _check(records: Records, mapped: mmap.mmap | None) -> tuple[NDArray[np.int64], Records]:
    """The undamaged records and their heads, read a chunk at a time: a segment may be larger than the memory there is."""
    fields = [name for name in records.dtype.names or () if name != "tensors"]
    size = records.itemsize
    rows, heads = [np.empty(0, np.int64)], [_packed(records[:0][fields])]
    step = max(1, _CHUNK // size)
    for first in range(0, len(records), step):
        part = records[first : first + step]
        good = np.flatnonzero(valid_records(part))
        rows.append(good + first)
        heads.append(_packed(part[fields][good]))
        if mapped is not None:
            _release(mapped, first, first + len(part), size)
    return np.concatenate(rows), np.concatenate(heads)


def _packed(heads: Records) -> Records:
    """Some fields of records, without the room that the others took between them."""
    return np.asarray(recfunctions.repack_fields(heads))


def _release(mapped: mmap.mmap, first: int, stop: int, size: int) -> None:
    """Unmap the pages of some records of `size` bytes, but the one that the next of them begins in."""
    # numpy maps from the last page (of the system's granularity) before the records' offset on.
    begin = (HEADER_BYTES % mmap.ALLOCATIONGRANULARITY + first * size) // mmap.PAGESIZE * mmap.PAGESIZE
    end = (HEADER_BYTES % mmap.ALLOCATIONGRANULARITY + stop * size) // mmap.PAGESIZE * mmap.PAGESIZE
    if _RELEASE is not None and end > begin:
        mapped.madvise(_RELEASE, begin, end - begin)


def _problems(segment: Segment, rest: int, promised: int | None) -> Iterator[str]:
    """What is wrong with a segment, given how many records its header promises (None while it is open)."""
    count = len(segment.records)
    damaged = count - len(segment.rows)
    if damaged:
        yield f"{damaged} of {count} records damaged and left out"
    if rest:
        yield "the last record is incomplete (it is being written, or the process ended in it)"
    if promised is not None and count < promised:
        yield f"{promised - count} of {promised} records missing at the end"
    if promised is not None and count > promised:
        yield f"{count - promised} records more than the header says"


def _read_without_header(path: Path, kind: str, siblings: Iterable[np.dtype[Any]]) -> tuple[Segment | None, list[str]]:
    """Find the record type by the checksums: the right one is that under which they hold."""
    trouble = "the header is damaged"
    if path.stat().st_size <= HEADER_BYTES:
        return None, [f"{trouble} and nothing follows it"]
    own = _type_of_first_record(path, kind)
    best: tuple[Segment, int] | None = None
    for dtype in [own] if own else siblings:
        found = _map(path, dtype)
        if len(found[0].rows) and (best is None or len(found[0].rows) > len(best[0].rows)):
            best = found
    if best is None:
        return None, [f"{trouble}; no record could be read"]
    return best[0], [f"{trouble}; the records were found by their checksums", *_problems(*best, promised=None)]


def _type_of_first_record(path: Path, kind: str) -> np.dtype[Any] | None:
    """The record type, from where in the first record its own checksum stands."""
    make = step_dtype if kind == "steps" else tensor_dtype
    fixed = make(0).itemsize - CRC_BYTES
    repeated = make(1).itemsize - make(0).itemsize
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        checksum, count = zlib.crc32(file.read(fixed)), 0
        while len(part := file.read(repeated)) >= CRC_BYTES:
            if int.from_bytes(part[:CRC_BYTES], "little") == checksum:
                return make(count)
            checksum, count = zlib.crc32(part, checksum), count + 1
    return None
