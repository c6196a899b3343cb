"""Reads what describes a log, run.json and events.jsonl, each of which can stand in for the other when one is damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stabkit.runlog.format import decode_line
from stabkit.runlog.record import Layout

__all__ = ["Manifest", "read_lines", "read_manifest"]


@dataclass
class Manifest:
    """What run.json holds: the format version, facts about the run, and the layouts of each optimizer's stream."""

    schema: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    layouts: dict[int, list[Layout]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        layouts = {str(k): [layout.to_json() for layout in v] for k, v in self.layouts.items()}
        return {"schema": self.schema, "facts": self.facts, "layouts": layouts}


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The undamaged objects of a .jsonl file, and how many lines were damaged. A missing file is empty."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    values = [decode_line(line) for line in lines if line]
    return [value for value in values if value is not None], sum(value is None for value in values)


def read_manifest(directory: Path) -> Manifest:
    """What run.json says; where it is damaged, what can be pieced together from the layout events.

    A missing file gives an empty manifest (schema None) with no note; damage is told in `notes`.
    """
    path = directory / "run.json"
    value: dict[str, Any] | None = None
    notes = []
    if path.exists():
        values, damaged = read_lines(path)
        value = values[0] if values else None
        if damaged or value is None:
            notes.append(f"{path.name} is damaged")
    if value is not None:
        schema = value.get("schema")
        try:
            layouts = {int(k): [Layout.from_json(item) for item in v] for k, v in value["layouts"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            layouts = {}
        return Manifest(schema, value.get("facts", {}), layouts, notes)

    events, _ = read_lines(directory / "events.jsonl")
    pieced: dict[int, list[Layout]] = {}
    for event in events:
        if event.get("event") == "layout":
            pieced.setdefault(int(event["optimizer"]), []).append(Layout.from_json(event["layout"]))
    if pieced:
        notes.append("the names of the tensors were recovered from events.jsonl")
    return Manifest(None, {}, pieced, notes)
