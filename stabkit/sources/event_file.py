"""TensorBoard's event files: scalars, in either of the two forms they are written in, and whole records past damaged ones.

Most events of a run are alike but for their time, their step and the bytes of one number. So one of each kind is decoded as a
protocol buffer, and the numbers of all others of its kind are taken from where they lie. Nothing but numbers is decoded;
nothing is unpickled.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array
from stabkit.sources.cells import Cell
from stabkit.sources.collect import Collected
from stabkit.sources.frames import Frames, begins, read_frames
from stabkit.sources.lines import open_bytes
from stabkit.sources.wire import Hole, hole_of

__all__ = ["begins", "read"]

Index = NDArray[np.int64]

_TIME, _STEP = 0x09, 0x10
"""What stands before the time and the step of an event: field 1 of eight bytes, field 2 of any length."""
_KEPT = 100_000
"""Kinds of events that are remembered; in a file with more than these every event is decoded by itself."""


def read(path: Path, into: Collected) -> None:
    """Read the scalars of an event file into columns: one row for each event."""
    into.format = "TensorBoard"
    events = _Events(into)
    with closing(open_bytes(path, into.notes)) as file:
        for frames in read_frames(file, path.name, into):
            events.add(frames)
            if into.full:
                break
    if events.strange:
        into.notes.append(f"{path.name}: {events.strange} record{'s' if events.strange > 1 else ''} could not be decoded")


class _Events:
    """Takes events apart, chunk by chunk.

    Attributes:
        strange: How many records were no events.
    """

    def __init__(self, into: Collected) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._decode, self._into = Event.FromString, into
        self._kinds: dict[tuple[Hole, bytes], str | None] = {}
        self._holes: dict[int, list[Hole]] = {}
        self.strange = 0

    def add(self, frames: Frames) -> None:
        """The rows of a chunk."""
        time, step, rest = _beginnings(frames)
        found: list[tuple[Index, str, Array]] = []
        left = np.flatnonzero(rest > 0)
        tail = (frames.ends - rest)[left]
        for length in np.unique(tail).tolist():
            same = left[tail == length]
            for hole in self._known_holes(frames, same, int(length)):
                same = self._take(frames, same, rest[same], hole, found)
            rest[same] = 0
        taken = np.zeros(len(frames), dtype=bool)
        for rows, _, _ in found:
            taken[rows] = True
        for row in np.flatnonzero(~taken).tolist():
            self._one(frames, row, time, step, found)
        self._into.add_many(time, step, found)

    def _known_holes(self, frames: Frames, rows: Index, length: int) -> list[Hole]:
        """Where numbers may stand in events that are of one length from behind the step on."""
        holes = self._holes.setdefault(length, [])
        for row in rows[:: max(1, len(rows) // 8)].tolist():
            hole = hole_of(frames.data[frames.begins[row] : frames.ends[row]])
            if hole is not None and hole not in holes:
                holes.append(hole)
        return holes

    def _take(self, frames: Frames, rows: Index, rest: Index, hole: Hole, found: list[tuple[Index, str, Array]]) -> Index:
        """Add those of these events that hold one number there and are of a known kind. Returns the others."""
        data, ends = frames.data, frames.ends[rows]
        begins, holes = rest.tolist(), (ends - hole.from_end).tolist()
        keys = [data[a:b] for a, b in zip(begins, holes, strict=True)]
        if hole.from_end > hole.size:  # all are of one length, so the two parts put together are told apart
            after = (ends - hole.from_end + hole.size).tolist()
            keys = [key + data[a:b] for key, a, b in zip(keys, after, ends.tolist(), strict=True)]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        kinds = np.fromiter(map(number.__getitem__, keys), np.int64, len(keys))
        raw = np.frombuffer(data, np.uint8)
        values = raw[(ends - hole.from_end)[:, None] + np.arange(hole.size)].copy().view(hole.kind).ravel().astype(np.float64)
        order = np.argsort(kinds, kind="stable")
        bounds = np.searchsorted(kinds[order], np.arange(len(number) + 1)).tolist()
        others = []
        for key, begin, end in zip(number, bounds, bounds[1:], strict=False):
            of_kind = order[begin:end]
            tag = self._tag(hole, key, data[frames.begins[rows[of_kind[0]]] : ends[of_kind[0]]])
            if tag is None:
                others.append(rows[of_kind])
            else:
                found.append((rows[of_kind], tag, values[of_kind]))
        return np.sort(np.concatenate([np.empty(0, np.int64), *others]))

    def _tag(self, hole: Hole, key: bytes, record: bytes) -> str | None:
        """The tag of a kind of events, of which this is one; None where it is none with one number at that place."""
        known = (hole, key)
        if known not in self._kinds:
            tag = None
            if hole_of(record) == hole:
                cells = self._cells(record)
                tag = next(iter(cells)) if cells and len(cells) == 1 else None
            if len(self._kinds) >= _KEPT:
                return tag
            self._kinds[known] = tag
        return self._kinds[known]

    def _one(self, frames: Frames, row: int, time: Array, step: Array, found: list[tuple[Index, str, Array]]) -> None:
        """Add an event that is unlike others."""
        try:
            event = self._decode(frames.data[frames.begins[row] : frames.ends[row]])
        except Exception:  # protobuf's own error, which has moved between its versions
            self.strange += 1
            return
        time[row], step[row] = event.wall_time, float(event.step)
        for tag, number in _cells(event).items():
            found.append((np.array([row]), tag, np.array([number], dtype=np.float64)))

    def _cells(self, record: bytes) -> dict[str, Cell] | None:
        try:
            return _cells(self._decode(record))
        except Exception:
            return None


def _beginnings(frames: Frames) -> tuple[Array, Array, Index]:
    """Time and step of the events that begin with these, and where the rest of each begins; 0 for another beginning."""
    raw = np.frombuffer(frames.data, np.uint8)
    n, at = len(frames), frames.begins
    room = frames.ends - at
    longest = np.minimum(at[:, None] + np.arange(20), len(raw) - 1)
    head = raw[longest]
    time = head[:, 1:9].copy().view("<f8").ravel()
    begins_so = (head[:, 0] == _TIME) & (room >= 20)
    has_step = head[:, 9] == _STEP
    number, shift_on, size = np.zeros(n, np.uint64), has_step.copy(), np.where(has_step, 10, 9)
    for place in range(10):
        byte = head[:, 10 + place]
        part = (byte & 0x7F).astype(np.uint64) << np.uint64(7 * place)
        number |= np.where(shift_on, part, np.uint64(0))
        size += shift_on
        shift_on &= byte >= 0x80
    begins_so &= ~shift_on
    rest = np.where(begins_so, at + size, 0)
    return time, number.view(np.int64).astype(np.float64), rest


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


