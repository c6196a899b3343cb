"""Reads what describes a log: run.json, or events.jsonl in its stead where it is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stabkit.runlog.lines import decode_line, read_lines
from stabkit.runlog.record import Layout

__all__ = ["Manifest", "read_manifest"]

Layouts = dict[int, list[Layout | None]]
_MOST_OPTIMIZERS, _MOST_LAYOUTS = 10_000, 100_000
"""A log that numbers them higher was made to fill the memory."""


@dataclass
class Manifest:
    """What run.json holds.

    Attributes:
        schema: Version of the format, None where it is not known.
        facts: What the writer noted about the run.
        layouts: The layouts of each optimizer's stream, by number; None for one that is lost.
        line_bytes: How long events.jsonl and scalars.jsonl were when this was written.
        notes: What was wrong with the files.
    """

    schema: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    layouts: Layouts = field(default_factory=dict)
    line_bytes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        layouts = {str(k): [layout and layout.to_json() for layout in v] for k, v in self.layouts.items()}
        return {"schema": self.schema, "facts": self.facts, "layouts": layouts, "line_bytes": self.line_bytes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` described; what cannot be understood in it is left out and noted."""
        found = cls(data.get("schema"))
        try:
            found.facts = dict(data["facts"])
            for optimizer, layouts in data["layouts"].items():
                known = [None if layout is None else Layout.from_json(layout) for layout in layouts]
                found.layouts[_below(_MOST_OPTIMIZERS, optimizer)] = known
            found.line_bytes = {str(name): int(size) for name, size in data.get("line_bytes", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            found.notes.append(f"run.json holds something unexpected ({type(error).__name__}: {error})")
        return found


def read_manifest(directory: Path) -> Manifest:
    """What run.json says; where it is damaged or gone, what can be pieced together from events.jsonl.

    Of a directory without either, an empty manifest (schema None) with no notes.
    """
    path = directory / "run.json"
    try:
        data = path.read_bytes()
        value = decode_line(data)
    except FileNotFoundError:
        value, trouble = None, "is missing"
    except OSError as error:
        value, trouble = None, f"cannot be read ({error.strerror})"
    else:
        trouble = "is damaged"
    if value is not None:
        found = Manifest.from_json(value)
        found.notes.extend([] if data.endswith(b"\n") else ["run.json is damaged at its end; nothing in it is lost"])
        return found

    events, _ = read_lines(directory / "events.jsonl")
    pieced = _from_events(events)
    if path.exists() or events:
        recovered = "; what it said was recovered from events.jsonl" if events else ""
        pieced.notes.append(f"run.json {trouble}{recovered}")
    return pieced


def _from_events(events: Iterable[Mapping[str, Any]]) -> Manifest:
    pieced = Manifest()
    for event in events:
        try:
            if event["event"] == "open":
                pieced.schema = event["schema"]
                pieced.facts |= event["facts"]
            elif event["event"] == "facts":
                pieced.facts |= event["facts"]
            elif event["event"] == "layout":
                index, layout = _below(_MOST_LAYOUTS, event["index"]), Layout.from_json(event["layout"])
                known = pieced.layouts.setdefault(_below(_MOST_OPTIMIZERS, event["optimizer"]), [])
                known.extend([None] * (index + 1 - len(known)))
                known[index] = layout
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue
    return pieced


def _below(limit: int, number: Any) -> int:
    """The number as a place in a list. Raises ValueError for one that no run has."""
    place = int(number)
    if not 0 <= place < limit:
        raise ValueError(f"no run has number {number!r:.20}")
    return place
