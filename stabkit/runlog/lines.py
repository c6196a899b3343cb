"""JSON lines with a checksum: `{"crc":<CRC-32 of the value's text>,"value":{...}}`. run.json is one such line.

Every version of the format keeps this envelope, so that an older stabkit can tell a newer log from a damaged one.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

__all__ = ["checksum_line", "decode_line", "read_lines"]

_START = re.compile(rb'\{"crc":\d{1,10},"value":')


def checksum_line(value: dict[str, Any]) -> bytes:
    """One line with the object in it. What JSON cannot hold becomes text, NaN and infinities "nan", "inf", "-inf"."""
    text = json.dumps(_encodable(value), separators=(",", ":"), sort_keys=True, allow_nan=False, default=_spelled)
    return f'{{"crc":{zlib.crc32(text.encode())},"value":{text}}}\n'.encode()


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line made by `checksum_line` (with or without its newline), or None where the line is damaged."""
    prefix, separator, rest = line.removesuffix(b"\n").partition(b',"value":')
    text = rest[:-1]
    if not separator or rest[-1:] != b"}" or prefix != b'{"crc":%d' % zlib.crc32(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the checksum is right, so whoever wrote this meant it; it is not ours
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path, expected_bytes: int = 0) -> tuple[list[dict[str, Any]], list[str]]:
    """The undamaged objects of a .jsonl file.

    Args:
        path: The file; one that is not there is empty.
        expected_bytes: How long it has been at least, as far as is known.

    Returns:
        The objects in the order of writing, and a sentence for each thing that was wrong.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], [f"{path.name} is missing"] if expected_bytes else []
    except OSError as error:
        return [], [f"{path.name} cannot be read ({error.strerror})"]
    *lines, rest = data.split(b"\n")
    values, damaged = [], 0
    for line in lines:
        value = decode_line(line)
        if value is not None:
            values.append(value)
        else:
            damaged += 1
            values.extend(_salvage(line))
    notes = [f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''}"] if damaged else []
    if rest:
        values.extend(_salvage(rest))
        notes.append(f"{path.name}: the last line is incomplete (it is being written, or the process ended in it)")
    if len(data) < expected_bytes:
        notes.append(f"{path.name}: {expected_bytes - len(data)} bytes are missing at the end")
    return values, notes


def _salvage(line: bytes) -> list[dict[str, Any]]:
    """The whole objects in a damaged line: without a newline (hit, or never written), they run together."""
    starts = [match.start() for match in _START.finditer(line)]
    pieces = [line[start:end] for start, end in zip(starts, [*starts[1:], len(line)], strict=False)]
    found = (decode_line(piece) or decode_line(piece[:-1]) for piece in pieces)
    return [value for value in found if value is not None]


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _spelled(value: Any) -> Any:
    """What stands for an object JSON does not know: the number in a NumPy scalar, else its text."""
    return _encodable(value.item()) if hasattr(value, "item") and getattr(value, "size", 0) == 1 else str(value)
