"""Tells what wrote a file: by its content first, by its name second."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from stabkit.sources import comma, event_file, jsonl, text, trainer_state
from stabkit.sources.collect import Collected
from stabkit.sources.lines import HEAD, beginning

__all__ = ["Reader", "recognise"]

Reader = Callable[[Path, Collected], None]
_TEXT_NAMES = (".log", ".txt", ".out", ".err")
"""Text by these names is read to its end for rows; other text must have some in its beginning."""
_MOST_CONTROL = 0.1
"""Share of control characters in the beginning of a file from which on it is no text."""


def recognise(path: Path) -> Reader | None:
    """What reads a file; None for one that is no log of any kind known here."""
    head = beginning(path)
    if event_file.begins(head) or "events.out.tfevents." in path.name:
        return event_file.read
    words = _text(head)
    if words is None:
        return None
    lines = words.split("\n")
    if len(head) >= HEAD:
        lines = lines[:-1]
    if trainer_state.begins(words):
        return trainer_state.read
    if _objects(lines):
        return jsonl.read
    if comma.recognise(lines):
        return comma.read
    if text.has_rows(lines) or path.name.removesuffix(".gz").endswith(_TEXT_NAMES):
        return text.read
    return None


def _text(head: bytes) -> str | None:
    """The beginning of a file as text, None where it is none."""
    if not head:
        return None
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = head.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    strange = len(re.findall(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffd]", text))
    return None if strange > _MOST_CONTROL * len(text) else text.replace("\r\n", "\n").replace("\r", "\n")


def _objects(lines: list[str]) -> bool:
    """Whether most lines are JSON objects, each whole on its line."""
    filled = [line for line in lines if line.strip()][:20]
    return 2 * sum(isinstance(jsonl.parsed(line), dict) for line in filled) > len(filled) > 0
