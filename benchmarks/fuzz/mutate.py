"""Makes hostile files out of good ones: blindly, and with every checksum set right again."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import google_crc32c

from stabkit.runlog.format import CRC_BYTES, HEADER_BYTES, npy_header, step_dtype, tensor_dtype
from stabkit.runlog.lines import checksum_line, decode_line

__all__ = ["HOSTILE", "Files", "mutated"]

Files = dict[str, bytes]
"""A log: the files of it by path."""

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07", "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "../../etc/passwd",
    "\u202eevil", "\x00", "\r\n", "%s%n{0}{x}", "[bold red]", "=cmd|' /C calc'!A0", "a" * 5000, "\ud800", "",
)  # fmt: skip
"""Names and messages that something somewhere might obey."""

_TOKENS = [
    *(text.encode(errors="surrogatepass") for text in HOSTILE),
    *(b"nan NaN inf -inf 1e999 -1e-999 0 -1 1e308 0x10 1_000 1,5 9007199254740993 tensor(nan) 1.#QNAN True null None".split()),
    *(b"step loss lr grad_norm time epoch global_step iteration iter: loss= {} [] , ; \t \n \r\n \" ' : /".split(b" ")),
    b"9" * 400, b"[" * 2000, b'{"a":' * 2000, b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"\0" * 16, b"\xff" * 8,
    b'"log_history": [', b'{"step": 1, "loss": 2.0}\n', b"iteration 10/ 100 | lm loss: 1.5E+00 | grad norm: 0.5 |\n",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 1.5, "nan", "inf", "-inf", [], {}, [[]], {"": None}, "x",
    *HOSTILE, [1] * 100, {"step": {}}, [None] * 3,
]  # fmt: skip


def mutated(files: Files, others: list[Files], chance: random.Random) -> Files:
    """The log with a few things changed.

    Args:
        files: What to begin with.
        others: More of the corpus, to take parts from.
        chance: Where all decisions come from.
    """
    changed = dict(files)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        name = chance.choice(sorted(changed))
        shaped = _SHAPED.get(name.rpartition(".")[2]) if chance.random() < 0.6 else None
        if shaped is not None:
            changed[name] = shaped(changed[name], chance)
        elif chance.random() < 0.03:
            changed = _rearranged(changed, chance)
        else:
            donor = chance.choice(others)
            changed[name] = _blind(changed[name], donor[chance.choice(sorted(donor))], chance)
    return {name: data[: 1 << 17] for name, data in changed.items()}


def _blind(data: bytes, donor: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    size = chance.choice((1, 1, 2, 4, 8, 64, 512))
    kind = chance.randrange(9)
    if kind == 0 and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + size :]
    if kind == 2:
        return data[:at] + chance.choice(_TOKENS) + data[at:]
    if kind == 3:
        return data[:at] + data[at : at + size] * chance.choice((2, 3, 50)) + data[at + size :]
    if kind == 4:
        begin = chance.randrange(len(donor) + 1)
        return data[:at] + donor[begin : begin + chance.choice((8, 64, 1024))] + data[at:]
    if kind == 5:
        return data[:at]
    if kind == 6:
        token = chance.choice(_TOKENS)
        return data[:at] + token + data[at + len(token) :]
    if kind == 7:
        lines = data.split(b"\n")
        chance.shuffle(lines)
        return b"\n".join(lines)
    return gzip.compress(data, 1) if chance.random() < 0.1 else data.replace(b"1", chance.choice(_TOKENS)[:64], 3)


def _rearranged(files: Files, chance: random.Random) -> Files:
    name, other = chance.choice(sorted(files)), chance.choice(sorted(files))
    kind = chance.randrange(3)
    if kind == 0 and len(files) > 1:
        return {path: data for path, data in files.items() if path != name}
    if kind == 1:
        return files | {name: files[other], other: files[name]}
    if name.endswith(".npy"):
        return files | {name.replace("000000", f"{chance.randrange(1, 9):06d}"): files[name]}
    return files


def _jsonl(data: bytes, chance: random.Random) -> bytes:
    """One object of a file of JSON lines changed; lines of ours get their checksum again."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    own = decode_line(lines[at])
    value = own
    if value is None:
        try:
            value = json.loads(lines[at])
        except (ValueError, RecursionError):
            return data
    value = _value(value, chance)
    if own is not None and isinstance(value, dict):
        try:
            lines[at] = checksum_line(value)[:-1]
        except (UnicodeEncodeError, ValueError):
            return data
    else:
        lines[at] = json.dumps(value).encode()
    return b"\n".join(lines)


def _json(data: bytes, chance: random.Random) -> bytes:
    if decode_line(data) is not None:
        return _jsonl(data.removesuffix(b"\n"), chance) + b"\n"
    try:
        return json.dumps(_value(json.loads(data), chance)).encode()
    except (ValueError, RecursionError):
        return data


def _value(value: Any, chance: random.Random, deep: int = 0) -> Any:
    """A JSON value with something in it changed."""
    if isinstance(value, dict) and value and chance.random() < 0.9 and deep < 8:
        changed, key = dict(value), chance.choice(sorted(value))
        kind = chance.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[chance.choice(HOSTILE)] = changed.pop(key)
        else:
            changed[key] = _value(value[key], chance, deep + 1)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.9 and deep < 8:
        at = chance.randrange(len(value))
        return [*value[:at], *([_value(value[at], chance, deep + 1)] * chance.choice((0, 1, 1, 1, 2))), *value[at + 1 :]]
    return chance.choice(_VALUES)


_NUMBERS = [struct.pack(kind, number) for kind, number in (
    *(("<d", x) for x in (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 1e-30)),
    *(("<q", x) for x in (0, 1, -1, 2, 3, 2**31, -(2**31), 2**53, 2**62, 2**63 - 1, -(2**63))),
)]  # fmt: skip


def _npy(data: bytes, chance: random.Random) -> bytes:
    """Numbers of records changed under a right checksum; or a header that says something else, under a right one."""
    if chance.random() < 0.15:
        return _header(data, chance)
    size = _record_size(data)
    if size is None or len(data) < HEADER_BYTES + size:
        return data
    begin = HEADER_BYTES + size * chance.randrange((len(data) - HEADER_BYTES) // size)
    record = bytearray(data[begin : begin + size - CRC_BYTES])
    for _ in range(chance.choice((1, 1, 3, 20))):
        at = 8 * chance.randrange(max(1, len(record) // 8))
        record[at : at + 8] = chance.choice(_NUMBERS)
    sealed = bytes(record) + zlib.crc32(record).to_bytes(CRC_BYTES, "little")
    times = chance.choice((1, 1, 1, 2, 40))
    return data[:begin] + sealed * times + data[begin + size :]


def _record_size(data: bytes) -> int | None:
    head = data[:HEADER_BYTES]
    make = tensor_dtype if b"'tensors'" in head else step_dtype
    for count in range(9):
        if npy_header(make(count), 0, False)[12:3000].split(b", 'fortran")[0] == head[12:3000].split(b", 'fortran")[0]:
            return make(count).itemsize
    return None


def _header(data: bytes, chance: random.Random) -> bytes:
    head = data[:HEADER_BYTES]
    old, new = chance.choice([
        (b"<f8", chance.choice((b"|O", b"<f4", b"V0", b"<U9", b"<c16", b"|S0", b"<M8"))), (b"'shape': (", b"'shape': (-"),
        (b"(", b"["), (b"'descr'", b"'descx'"), (b"stabkit 1", b"stabkit 2"), (b" open", b"clos"), (b"'step'", b"'time'"),
        (b"{", b"[" * 200), (b"'tensors'", b"'group'"), (b"'shape': (", b"'shape': (9" + b"9" * 60), (b"'crc'", b"'crx'"),
    ])  # fmt: skip
    changed = head.replace(old, new, chance.choice((1, -1)))[:-9].ljust(HEADER_BYTES - 9)[: HEADER_BYTES - 9]
    if old == b" open":
        changed = head.replace(b" open", b" closed", 1)[: HEADER_BYTES - 9]
    comment = head[-64:-9].split(b"#")[-1]
    changed = changed[: -len(comment)] + comment
    return changed + b"%08x\n" % zlib.crc32(changed) + data[HEADER_BYTES:]


def _events(data: bytes, chance: random.Random) -> bytes:
    """A record of an event file changed under right checksums."""
    records, at = [], 0
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        if length > len(data):
            break
        records.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    if not records:
        return data
    which = chance.randrange(len(records))
    records[which] = _blind(records[which], chance.choice(records), chance)
    return b"".join(_event(record) for record in records) + data[at:]


def _event(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + _masked(length) + record + _masked(record)


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


_SHAPED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "jsonl": _jsonl, "json": _json, "npy": _npy, "tfevents": _events,
}  # fmt: skip
