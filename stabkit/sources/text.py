"""Text that a program printed: every line that has a step and other numbers is a row, whatever stands between them.

`iter 100: loss 4.5678, time 123.45ms`, `step:100/1000 train_loss:3.2`, `s:12 trl:3.3`, `{'loss': 1.2, 'learning_rate': 1e-5}`.
Lines of Megatron and DeepSpeed are left to those who know them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from stabkit.sources.cells import NUMBER, Cell, read_cell
from stabkit.sources.collect import Collected
from stabkit.sources.deepspeed import DeepSpeed
from stabkit.sources.lines import read_lines
from stabkit.sources.megatron import row as megatron_row

__all__ = ["has_rows", "pairs", "read"]

_PAIR = re.compile(
    rf"(?<![\w.])(?P<name>[A-Za-z_][\w./%-]{{0,80}}(?:[ ][A-Za-z_][\w./-]{{0,80}}){{0,3}}?)(?:\s*\([^()]{{0,20}}\))?[\"']?"
    rf"(?:\s*[:=]\s*|\s+)[\[(\"']*\s*(?P<value>{NUMBER})(?P<after>[A-Za-z%/]?)"
)
"""A name of up to four words, then a number. What follows the number tells a unit (`ms`) from a word (`3rd`)."""

_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?")
_STEPS = ("global_step", "num_updates", "step", "iteration", "iter", "it", "steps", "update", "s")
"""Words for the step, the surest first."""
_SURE = _STEPS[:2]
_FIRST_PAIRS = 4
"""Among so many pairs of a line the other words for a step must be: further on they are something else."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TRIPLE = re.compile(rf"\s*(\d+) (train|val|test) ({NUMBER})\s*")
"""As build-nanogpt writes it: `100 train 5.1234`."""
_LOSSES = re.compile(r"loss|trl|nll")
_LONGEST = 8_000
"""Characters of a line that are looked at: rows of numbers are shorter, and printed models longer."""
_MOST_PAIRS = 200


def read(path: Path, into: Collected) -> None:
    """Read the lines that are rows into columns; all others are passed over."""
    deepspeed = DeepSpeed()
    kinds: dict[str, Callable[[str], dict[str, Cell] | None]] = {
        "Megatron": megatron_row,
        "DeepSpeed": deepspeed.row,
        "text": _row_with_step,
    }
    counts = dict.fromkeys(kinds, 0)
    stepless: list[dict[str, Cell]] = []
    for _, printed, _ in read_lines(path, into):
        line = _COLOUR.sub("", printed) if "\x1b" in printed else printed
        if len(line) > _LONGEST or not any(c.isdigit() for c in line):
            continue
        for kind, row in kinds.items():
            if cells := row(line):
                counts[kind] += 1
                cells |= _clock(line)
                into.add(cells)
                break
        else:
            if not any(counts.values()) and len(stepless) < 1_000_000 and (cells := _row_without_step(line)):
                stepless.append(cells)
    if not any(counts.values()):
        for cells in stepless:
            into.add(cells)
    most = max(counts, key=lambda kind: counts[kind])
    into.format = "text" if most == "text" or not counts[most] else f"text ({most})"


def has_rows(lines: list[str], least: int = 2) -> bool:
    """Whether so many of the lines are rows."""
    deepspeed = DeepSpeed()
    found = 0
    for line in lines:
        row = megatron_row(line) or deepspeed.row(line) or _row_with_step(line) or _row_without_step(line)
        found += row is not None
        if found >= least:
            return True
    return False


def pairs(line: str) -> dict[str, Cell]:
    """The numbers of a line by the words before them; the first of two with the same name counts."""
    found: dict[str, Cell] = {}
    for match in _PAIR.finditer(line[:_LONGEST]):
        name = match["name"].strip()
        if name not in found and len(found) < _MOST_PAIRS and not name.endswith(".py"):
            found[name] = read_cell(match["value"])
    return found


def _row_with_step(line: str) -> dict[str, Cell] | None:
    if match := _TRIPLE.fullmatch(line):
        return {"step": float(match[1]), f"{match[2]}_loss": read_cell(match[3])}
    found = pairs(line)
    if len(found) < 2:
        return None
    may_be = [name for place, name in enumerate(found) if _may_be_step(place, name, found)]
    named = {name.lower().split(" ")[-1]: name for name in reversed(may_be)}
    step = next((named[word] for word in _STEPS if word in named), None)
    if step is None:
        return None
    cells: dict[str, Cell] = {"step": found.pop(step)}
    return cells | found


def _may_be_step(place: int, name: str, found: Mapping[str, Cell]) -> bool:
    value = found[name]
    whole = isinstance(value, float) and value.is_integer()
    return whole and (place < _FIRST_PAIRS or name.lower() in _SURE)


def _row_without_step(line: str) -> dict[str, Cell] | None:
    """Such as the dictionaries that Hugging Face's Trainer prints."""
    if not line.lstrip().startswith("{"):
        return None
    found = pairs(line)
    return found if len(found) > 1 and any(_LOSSES.search(name.lower()) for name in found) else None


def _clock(line: str) -> dict[str, Cell]:
    """The time that a line begins with, read as UTC: logs do not say their zone."""
    match = _STAMP.search(line[:60])
    if match is None:
        return {}
    *whole, fraction = match.groups()
    try:
        moment = datetime(*(int(part) for part in whole), tzinfo=timezone.utc)  # type: ignore[arg-type, misc]
    except ValueError:
        return {}
    return {"timestamp": moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)}
