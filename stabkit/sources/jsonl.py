"""JSON lines: one object a line, nested ones spelled with slashes, as wandb, Composer and hand-written loggers write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stabkit.sources.cells import Cell, read_cell
from stabkit.sources.collect import Collected
from stabkit.sources.lines import read_lines

__all__ = ["flat", "parsed", "read"]

_DEEPEST = 6
_LONGEST_LIST = 64
"""Numbers of a list that become columns of their own, such as the rates of several groups."""


def read(path: Path, into: Collected) -> None:
    """Read JSON lines into columns."""
    into.format = "JSON lines"
    for number, line, ended in read_lines(path, into):
        if not line.strip():
            continue
        value = parsed(line)
        if isinstance(value, dict):
            into.add(flat(value))
        elif not ended:
            into.notes.append(f"line {number}, the last, is incomplete: it was left out")
        else:
            into.unreadable(number, "it is no JSON object")


def parsed(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def flat(record: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of an object: what lies deeper is named by its path, "train/loss"."""
    return dict(_cells(record, "", _DEEPEST))


def _cells(value: Any, name: str, deeper: int) -> Iterator[tuple[str, Cell]]:
    if isinstance(value, dict) and deeper:
        for key, item in value.items():
            yield from _cells(item, f"{name}/{key}" if name else str(key), deeper - 1)
    elif isinstance(value, list) and deeper and len(value) <= _LONGEST_LIST:
        for index, item in enumerate(value):
            yield from _cells(item, f"{name}/{index}", deeper - 1)
    elif isinstance(value, str):
        yield name, read_cell(value)
    elif value is None:
        yield name, None
    elif isinstance(value, (int, float)):
        try:
            yield name, float(value)
        except OverflowError:
            yield name, "a number beyond all bounds"
