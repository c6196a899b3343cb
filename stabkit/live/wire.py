"""What the training and the process that judges it say to each other: lines, in a pipe each way."""

from __future__ import annotations

import base64
import pickle
from typing import Any

__all__ = ["END", "pack", "unpack"]

END = b"end\n"
"""What the training says: nothing will be added to the log; look once more."""
_PREFIX = b"stabkit:"
"""What begins a line of ours on the process's standard output: something else may print there too."""


def pack(kind: str, content: Any = None) -> bytes:
    """A line that says something of a kind: "ready", "finding", "trouble" or "done"."""
    return _PREFIX + base64.b64encode(pickle.dumps((kind, content))) + b"\n"


def unpack(line: bytes) -> tuple[str, Any] | None:
    """What a line says, None where it is not one of ours."""
    if not line.startswith(_PREFIX):
        return None
    kind, content = pickle.loads(base64.b64decode(line.removeprefix(_PREFIX)))
    return str(kind), content
