"""TensorBoard's event files: scalars, in either of the two forms they are written in, and whole records past damaged ones.

A file is a series of records: length, checksum of the length, an Event in protocol buffers, checksum of that. Nothing but
numbers is decoded; nothing is unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from stabkit.sources.cells import Cell
from stabkit.sources.collect import Collected
from stabkit.sources.lines import Bytes, open_bytes

__all__ = ["begins", "read"]

_HEAD, _FOOT = 12, 4
_LONGEST_RECORD = 64 * 2**20
"""Bytes. Longer ones are pictures or graphs: they are passed over."""
_CHUNK = 256 * 2**10


def begins(head: bytes) -> bool:
    """Whether a file begins like an event file."""
    return len(head) >= _HEAD and _length(head) is not None


def read(path: Path, into: Collected) -> None:
    """Read the scalars of an event file into columns: one row for each event."""
    from tensorboard.compat.proto.event_pb2 import Event

    into.format = "TensorBoard"
    strange = 0
    with closing(open_bytes(path, into.notes)) as file:
        for record in _records(file, path.name, into):
            if into.full:
                break
            try:
                event = Event.FromString(record)
            except Exception:  # protobuf's own error, which has moved between its versions
                strange += 1
                continue
            cells = _cells(event)
            if cells:
                into.add({"step": float(event.step), "wall_time": event.wall_time, **cells})
    if strange:
        into.notes.append(f"{path.name}: {strange} record{'s' if strange > 1 else ''} could not be decoded")


def _cells(event: Any) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for value in event.summary.value if event.HasField("summary") else ():
        if value.HasField("simple_value"):
            cells[value.tag] = float(value.simple_value)
        elif value.HasField("tensor"):
            number = _number(value.tensor)
            if number is not None and value.metadata.plugin_data.plugin_name in ("", "scalars"):
                cells[value.tag] = number
    return cells


_KINDS: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_val"),
    2: ("<f8", "double_val"),
    3: ("<i4", "int_val"),
    9: ("<i8", "int64_val"),
    10: ("?", "bool_val"),
}


def _number(tensor: Any) -> float | None:
    """The one number in a tensor; None for anything else."""
    if any(side.size != 1 for side in tensor.tensor_shape.dim):
        return None
    if tensor.dtype in (14, 19):  # bfloat16 and half: their bits
        bits = int(tensor.half_val[0]) if tensor.half_val else int.from_bytes(tensor.tensor_content[:2], "little")
        as_single = np.array([bits << 16], np.uint32).view(np.float32) if tensor.dtype == 14 else None
        return float(as_single[0] if as_single is not None else np.array([bits], np.uint16).view(np.float16)[0])
    kind, field = _KINDS.get(tensor.dtype, ("", ""))
    if not kind:
        return None
    if tensor.tensor_content:
        size = np.dtype(kind).itemsize
        return float(np.frombuffer(tensor.tensor_content, kind)[0]) if len(tensor.tensor_content) == size else None
    held = getattr(tensor, field)
    return float(held[0]) if len(held) == 1 else None


def _records(file: Bytes, name: str, into: Collected) -> Iterator[bytes]:
    """The undamaged records. After a damaged one the next whole one is looked for."""
    buffer = bytearray()
    damaged, lost, hunting = 0, 0, False

    def fill(size: int) -> bool:
        while len(buffer) < size:
            more = file.read1(_CHUNK)
            if not more:
                return False
            buffer.extend(more)
        return True

    while fill(_HEAD):
        length = _length(buffer)
        if length is None:
            damaged += not hunting
            hunting = True
            skip = _next(buffer)
            lost += skip
            del buffer[:skip]
            continue
        hunting = False
        if length > _LONGEST_RECORD:
            if not _pass_over(file, buffer, _HEAD + length + _FOOT):
                break
            continue
        if not fill(_HEAD + length + _FOOT):
            break
        record = bytes(buffer[_HEAD : _HEAD + length])
        if _masked(record) == bytes(buffer[_HEAD + length : _HEAD + length + _FOOT]):
            yield record
        else:
            damaged += 1
        del buffer[: _HEAD + length + _FOOT]
    if damaged:
        into.notes.append(f"{name}: damaged in {damaged} place{'s' if damaged > 1 else ''}; the records there are lost")
    if buffer and not hunting:
        into.notes.append(f"{name}: the last record is incomplete (it is being written, or the process ended in it)")


def _next(buffer: bytearray) -> int:
    """How far it is to where a record may begin: lengths are small, so five zero bytes stand in their upper half."""
    at = 1
    while at + _HEAD <= len(buffer):
        zeros = buffer.find(b"\0\0\0\0\0", at + 3)
        if zeros < 0:
            return max(1, len(buffer) - _HEAD)
        begin = max(at, zeros - 4)
        for candidate in range(begin, min(zeros + 1, len(buffer) - _HEAD) + 1):
            if _length(buffer[candidate : candidate + _HEAD]) is not None:
                return candidate
        at = zeros + 2
    return max(1, at if at < len(buffer) else len(buffer) - _HEAD)


def _pass_over(file: Bytes, buffer: bytearray, size: int) -> bool:
    """Read on past so many bytes without keeping them; False at the end of the file."""
    while size > len(buffer):
        size -= len(buffer)
        buffer.clear()
        more = file.read1(_CHUNK)
        if not more:
            return False
        buffer.extend(more)
    del buffer[:size]
    return True


def _length(head: bytes | bytearray) -> int | None:
    """The length of the record that begins here; None where the checksum says that none does."""
    if _masked(bytes(head[:8])) != bytes(head[8:_HEAD]):
        return None
    return int(struct.unpack_from("<Q", head)[0])


def _masked(data: bytes) -> bytes:
    # Masked as TensorFlow does, because a checksum of data that contains checksums is weak.
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
