"""The lines of a file, plain or gzip, in whatever encoding: a stream, with a bound on everything."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Protocol

from stabkit.sources.collect import Collected

__all__ = ["HEAD", "beginning", "open_bytes", "read_lines"]

LONGEST_LINE = 16 * 2**20
"""Characters. A longer line is no row of numbers."""

HEAD = 64 * 2**10
"""Bytes that are looked at to tell what a file is."""

_CHUNK = 64 * 2**10
_GZIP = b"\x1f\x8b"
_MOST_PACKED, _ALWAYS_READ = 200, 256 * 2**20
"""Logs shrink to a tenth. What grows 200-fold, and to more than 256 MiB, was made to fill a disk."""


class Bytes(Protocol):
    """Something to read bytes from."""

    def read1(self, size: int = -1, /) -> bytes:
        """Some bytes; none at the end."""

    def close(self) -> None:
        """Close it."""


class _Unpacked:
    """A gzip file that ends where it is damaged, cut off, or grows beyond reason, and says so."""

    def __init__(self, file: BinaryIO, packed: int, notes: list[str]) -> None:
        self._file, self._gzip = file, gzip.GzipFile(fileobj=file)
        self._limit = max(_ALWAYS_READ, _MOST_PACKED * packed)
        self._read, self._notes = 0, notes

    def read1(self, size: int = -1, /) -> bytes:
        if self._read > self._limit:
            self._notes.append(f"only the first {self._limit // 2**20} MiB were unpacked: it grows beyond reason")
            return b""
        try:
            data = self._gzip.read1(size)
        except (OSError, EOFError, zlib.error) as error:
            what = "is cut off" if isinstance(error, EOFError) else f"is damaged ({error})"
            self._notes.append(f"the gzip file {what}; what could be unpacked was read")
            return b""
        self._read += len(data)
        return data

    def close(self) -> None:
        self._gzip.close()
        self._file.close()


def open_bytes(path: Path, notes: list[str]) -> Bytes:
    """The bytes of a file, unpacked if its first two say that it is gzip. `notes` gets what goes wrong."""
    file = open(path, "rb")  # noqa: SIM115 - closed by the caller
    if file.peek(2)[:2] == _GZIP:
        return _Unpacked(file, path.stat().st_size, notes)
    return file


def beginning(path: Path) -> bytes:
    """The first bytes of a file, unpacked."""
    with closing(open_bytes(path, [])) as file:
        found = b""
        while len(found) < HEAD and (more := file.read1(HEAD - len(found))):
            found += more
    return found


def read_lines(path: Path, into: Collected) -> Iterator[tuple[int, str, bool]]:
    """The lines of a text file: (number from 1, text without its end, whether it has an end).

    Lines that are too long or hold zero bytes are noted as unreadable and left out. Line ends may be those of any system;
    a progress bar that returns to the beginning of its line makes a new line each time.
    """
    with closing(open_bytes(path, into.notes)) as file:
        pending: list[str] = []
        number, length, spoiled = 0, 0, False
        decoder: io.IncrementalNewlineDecoder | None = None
        ended = False
        while not ended and not into.full:
            data = file.read1(_CHUNK)
            ended = not data
            decoder = decoder or _decoder(data)
            *whole, rest = decoder.decode(data, final=ended).split("\n")
            for piece in whole:
                number += 1
                line = piece if not pending else "".join((*pending, piece))
                if spoiled or len(line) > LONGEST_LINE:
                    into.unreadable(number, f"longer than {LONGEST_LINE:,} characters")
                elif "\0" in line:
                    into.unreadable(number, "it holds zero bytes")
                else:
                    yield number, line, True
                pending, length, spoiled = [], 0, False
            length += len(rest)
            spoiled = spoiled or length > LONGEST_LINE
            if spoiled:
                pending = []
            elif rest:
                pending.append(rest)
        if spoiled:
            into.unreadable(number + 1, f"longer than {LONGEST_LINE:,} characters")
        elif pending:
            line = "".join(pending)
            if "\0" in line:
                into.unreadable(number + 1, "it holds zero bytes")
            else:
                yield number + 1, line, False


def _decoder(first: bytes) -> io.IncrementalNewlineDecoder:
    """What makes text of the bytes: UTF-8 unless they begin with another mark; what is no text becomes U+FFFD."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell's > writes
        name = "utf-16"
    else:
        name = "utf-8-sig"
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(name)(errors="replace"), translate=True)
