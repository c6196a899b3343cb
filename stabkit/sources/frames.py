"""The framing of event files: where the records lie in a chunk of one, which are undamaged, and past damage to the next.

A file is a series of records: length, checksum of the length, content, checksum of that. A million small records are told
apart in a second: lengths are followed one by one, everything else is done for many records at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from stabkit.sources.collect import Collected
from stabkit.sources.lines import Bytes

__all__ = ["Frames", "begins", "read_frames"]

Index = NDArray[np.int64]

_HEAD, _FOOT = 12, 4
_LONGEST_RECORD = 64 * 2**20
"""Bytes. Longer ones are pictures or graphs: they are passed over."""
_CHUNK = 4 * 2**20
_FIRST_CHUNK = 256 * 2**10
"""Of many files only the first rows are wanted."""


@dataclass(frozen=True)
class Frames:
    """The undamaged records of a chunk.

    Attributes:
        data: The chunk.
        begins: int64 [n]: where the content of each begins.
        ends: int64 [n]: where it ends.
    """

    data: bytes
    begins: Index
    ends: Index

    def __len__(self) -> int:
        return len(self.begins)


def begins(head: bytes) -> bool:
    """Whether a file begins like an event file."""
    return len(head) >= _HEAD and _length(head, 0) is not None


def read_frames(file: Bytes, name: str, into: Collected) -> Iterator[Frames]:
    """The undamaged records, chunk by chunk. After a damaged one the next whole one is looked for; `into` is told of it."""
    data, damaged, hunting, chunk = b"", 0, False, _FIRST_CHUNK
    while more := file.read1(chunk):
        data, chunk = data + more, _CHUNK
        at = 0
        while at + _HEAD <= len(data):
            starts, at = _follow(data, at)
            if starts:
                hunting = False
                frames = _whole(data, starts)
                damaged += len(starts) - len(frames)
                yield frames
            if at + _HEAD > len(data):
                break
            length = _length(data, at)
            if length is None:
                damaged += not hunting
                hunting = True
                at += _next(data, at)
            elif length > _LONGEST_RECORD:
                hunting = False
                data, at = _pass_over(file, data, at + _HEAD + length + _FOOT), 0
            else:
                break
        data = data[at:]
    if damaged:
        into.notes.append(f"{name}: damaged in {damaged} place{'s' if damaged > 1 else ''}; the records there are lost")
    if data and not hunting:
        into.notes.append(f"{name}: the last record is incomplete (it is being written, or the process ended in it)")


def _follow(data: bytes, at: int) -> tuple[list[int], int]:
    """Where the records begin that lie whole in a chunk and whose lengths are undamaged, and where the next one would begin."""
    starts: list[int] = []
    add, size, length_at, frame = starts.append, len(data), struct.Struct("<Q").unpack_from, _HEAD + _FOOT
    while at + frame <= size:
        end = at + frame + length_at(data, at)[0]
        if end > size:
            break
        add(at)
        at = end
    if starts:
        raw = np.frombuffer(data, np.uint8)
        heads = raw[np.array(starts)[:, None] + np.arange(_HEAD)]
        lengths, which = np.unique(heads[:, :8].copy().view("<u8").ravel(), return_inverse=True)
        sums = np.array([int.from_bytes(_masked(int(each).to_bytes(8, "little")), "little") for each in lengths], np.uint32)
        bad = np.flatnonzero(sums[which] != heads[:, 8:].copy().view("<u4").ravel())
        if len(bad):
            at = starts[int(bad[0])]
            del starts[int(bad[0]) :]
    return starts, at


def _whole(data: bytes, starts: list[int]) -> Frames:
    """Of the records that begin there and follow each other, those whose content is undamaged."""
    begin = np.array(starts, dtype=np.int64) + _HEAD
    raw = np.frombuffer(data, np.uint8)
    length = raw[(begin - _HEAD)[:, None] + np.arange(8)].copy().view("<i8").ravel()
    end = begin + length
    value = google_crc32c.value
    sums = np.array([value(data[a:b]) for a, b in zip(begin.tolist(), end.tolist(), strict=True)], dtype=np.uint64)
    masked = ((sums >> np.uint64(15) | sums << np.uint64(17)) + np.uint64(0xA282EAD8)) & np.uint64(0xFFFFFFFF)
    good = masked == raw[end[:, None] + np.arange(_FOOT)].copy().view("<u4").ravel()
    return Frames(data, begin[good], end[good])


def _next(data: bytes, at: int) -> int:
    """How far it is from `at` to where a record may begin: lengths are small, so zero bytes stand in their upper half."""
    place = at + 1
    while place + _HEAD <= len(data):
        zeros = data.find(b"\0\0\0\0\0", place + 3)
        if zeros < 0:
            break
        for candidate in range(max(place, zeros - 4), min(zeros + 1, len(data) - _HEAD) + 1):
            if _length(data, candidate) is not None:
                return candidate - at
        place = zeros + 2
    return max(1, len(data) - _HEAD + 1 - at)


def _pass_over(file: Bytes, data: bytes, size: int) -> bytes:
    """Read on past so many bytes without keeping them; what follows, of which there is nothing at the end of the file."""
    while size > len(data):
        size -= len(data)
        data = file.read1(_CHUNK)
        if not data:
            return b""
    return data[size:]


def _length(data: bytes, at: int) -> int | None:
    """The length of the record that begins here; None where the checksum says that none does."""
    if _masked(data[at : at + 8]) != data[at + 8 : at + _HEAD]:
        return None
    return int.from_bytes(data[at : at + 8], "little")


def _masked(data: bytes) -> bytes:
    # Masked as TensorFlow does, because a checksum of data that contains checksums is weak.
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
