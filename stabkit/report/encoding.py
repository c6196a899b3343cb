"""Keeps a report whole on a terminal that cannot write all of its characters."""

from __future__ import annotations

import codecs
import os
import sys

__all__ = ["speak_any_encoding"]

_SPELLED = {"—": "-", "–": "-", "…": "...", "·": ".", "×": "x", "≥": ">=", "≤": "<=", "√": "sqrt", "β": "beta"}
_SPELLED |= dict(zip("▁▂▃▄▅▆▇█■▲○", "_.,-~=+#E!i", strict=True))  # sparklines: a character for a character


def speak_any_encoding() -> None:
    """Make sure that no character stops a report: where the encoding lacks one, it is spelled or escaped."""
    codecs.register_error("stabkit", _spell)
    if sys.stdout is None or sys.stderr is None:  # closed by the caller (`>&-`)
        sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="stabkit")


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end
