"""Finds the bytes of the one number in an event: just enough of the wire format of protocol buffers to walk to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Hole", "hole_of"]

_TIME, _STEP, _SUMMARY = (1, 1), (2, 0), (5, 2)
"""Fields of an event, with their wire types."""
_VALUE, _SIMPLE, _TENSOR = 1, 2, 8
_CONTENT = 4
_NUMBERS = {5: (1, "<f4"), 6: (2, "<f8")}
"""Of a tensor: the field that holds the numbers, with the type it goes with and what they are."""
_KINDS = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}
_TYPE = 1


@dataclass(frozen=True)
class Hole:
    """Where the number of an event stands.

    Attributes:
        from_end: How many bytes before the end of the event.
        size: How many bytes it has.
        kind: Its NumPy type.
    """

    from_end: int
    size: int
    kind: str


def hole_of(event: bytes) -> Hole | None:
    """Where an event holds its one number; None where it holds none or several, or a number that is not of fixed size."""
    try:
        whole = list(_fields(event, 0, len(event)))
        if [(field, wire) for field, wire, _ in whole] not in ([_TIME, _STEP, _SUMMARY], [_TIME, _SUMMARY]):
            return None
        values = [span for field, wire, span in _fields(event, *whole[-1][2]) if (field, wire) == (_VALUE, 2)]
        if len(values) != 1:
            return None
        held = [(field, wire, span) for field, wire, span in _fields(event, *values[0]) if field in (_SIMPLE, _TENSOR)]
        if len(held) != 1:
            return None
        field, wire, span = held[0]
        if (field, wire) == (_SIMPLE, 5):
            return Hole(len(event) - span[0], 4, "<f4")
        return _in_tensor(event, *span) if (field, wire) == (_TENSOR, 2) else None
    except (IndexError, ValueError):
        return None


def _in_tensor(event: bytes, begin: int, end: int) -> Hole | None:
    """The hole of a tensor that holds a single number."""
    kinds = [span for field, wire, span in _fields(event, begin, end) if (field, wire) == (_TYPE, 0)]
    kind = event[kinds[0][0]] if len(kinds) == 1 else 0
    held = [(field, span) for field, _, span in _fields(event, begin, end) if field >= _CONTENT]
    if len(held) != 1:
        return None
    field, (first, last) = held[0]
    if field == _CONTENT:
        numpy = _KINDS.get(kind)
    else:
        type_of_field, numpy = _NUMBERS.get(field, (0, ""))
        if type_of_field != kind:
            return None
    if not numpy or last - first != int(numpy[2]):
        return None
    return Hole(len(event) - first, last - first, numpy)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(number, wire type, where its content lies) of each field of a message. Raises ValueError or IndexError on nonsense."""
    while at < end:
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        begin = at
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, begin = _varint(data, at)
            at = begin + length
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field ends behind its message")
        yield field, wire, (begin, at)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of any length, and where what follows it begins."""
    number, shift = 0, 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
