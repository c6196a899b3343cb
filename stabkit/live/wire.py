"""What the training and the process that judges it say to each other: lines of JSON, in a pipe each way.

Python's own dialect of JSON: NaN and the infinities are written as such, and every float comes back as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stabkit.finding import Evidence, Finding, Severity, State

__all__ = ["END", "pack", "unpack"]

END = b"end\n"
"""What the training says: nothing will be added to the log; look once more."""
_PREFIX = b"stabkit:"
"""What begins a line of ours on the process's standard output: something else may print there too."""


def pack(kind: str, content: Finding | str | None = None) -> bytes:
    """A line that says something of a kind: "ready", "finding", "trouble" or "done"."""
    said = asdict(content) if isinstance(content, Finding) else content
    return _PREFIX + json.dumps([kind, said], default=_plain).encode() + b"\n"


def unpack(line: bytes) -> tuple[str, Any] | None:
    """What a line says, None where it is not one of ours."""
    if not line.startswith(_PREFIX):
        return None
    kind, said = json.loads(line.removeprefix(_PREFIX))
    return str(kind), _finding(said) if kind == "finding" else said


def _plain(value: Any) -> Any:
    """What JSON has no word for: the state by its value, NumPy's numbers as Python's."""
    return value.value if isinstance(value, State) else value.item()


def _finding(said: Mapping[str, Any]) -> Finding:
    """The finding that `asdict` took apart."""
    confidence = said["confidence"]
    rebuilt = {
        "severity": Severity(said["severity"]),
        "state": State(said["state"]),
        "tensors": tuple(said["tensors"]),
        "evidence": tuple(Evidence(**each) for each in said["evidence"]),
        "confidence": confidence and tuple(confidence),
        "batches": {int(step): tuple(names) for step, names in said["batches"].items()},
        "consequences": tuple(_finding(each) for each in said["consequences"]),
    }
    return Finding(**{**said, **rebuilt})
