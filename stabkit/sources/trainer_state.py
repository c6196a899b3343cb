"""Hugging Face's trainer_state.json, and any JSON file that is an array of objects: read object by object, never whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from stabkit.sources.collect import Collected
from stabkit.sources.jsonl import flat
from stabkit.sources.lines import LONGEST_LINE, open_bytes

__all__ = ["begins", "read"]

_HISTORY = re.compile(r'"log_history"\s*:\s*\[')
_ARRAY = re.compile(r"\s*\[\s*(?=\{)")
_BETWEEN = re.compile(r"[\s,]*")
_CHUNK = 256 * 2**10


def begins(text: str) -> bool:
    """Whether a file that begins with this text holds an array of objects that can be a log."""
    return bool(_ARRAY.match(text) or (text.lstrip().startswith("{") and _HISTORY.search(text)))


def read(path: Path, into: Collected) -> None:
    """Read the objects of log_history, or of the array that the file is, into columns."""
    into.format = "JSON"
    chunks = _chunks(path, into)
    text = next(chunks, "").removeprefix("\ufeff")
    start = _ARRAY.match(text)
    while start is None and (start := _HISTORY.search(text)) is None:
        more = next(chunks, "")
        if not more:
            return
        text = text[-64:] + more
    if '"log_history"' in start[0]:
        into.format = "trainer_state.json"
    text, decoder = text[start.end() :], json.JSONDecoder()
    while not into.full:
        text = text[_at(text) :]
        if text.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            more = next(chunks, "")
            if not more or len(text) > LONGEST_LINE:
                into.notes.append("the file ends in the middle of a record: what comes before it was read")
                return
            text += more
            continue
        if isinstance(value, dict):
            into.add(flat(value))
        text = text[end:]


def _at(text: str) -> int:
    match = _BETWEEN.match(text)
    return match.end() if match else 0


def _chunks(path: Path, into: Collected) -> Iterator[str]:
    with closing(open_bytes(path, into.notes)) as file:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while data := file.read1(_CHUNK):
            if text := decoder.decode(data):
                yield text
