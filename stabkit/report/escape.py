"""How foreign text gets into a web page: as text, whatever it says. No other file of the house writes markup from data.

A layer may be called `<img src=x onerror=alert(1)>`; names, remarks and paths come from the log, hence from anywhere.
"""

from __future__ import annotations

import html
import json
import math
from typing import Any

from stabkit.report.words import printable

__all__ = ["data", "framed", "markup"]

_IN_SCRIPTS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\x7f": "\\u007f"})


def markup(text: object) -> str:
    """The text for the inside of an element or of a quoted attribute."""
    return html.escape(printable(str(text)), quote=True)


def framed(page: str, height: int) -> str:
    """A whole page as a frame within another page: its scripts run, and reach nothing outside of the frame."""
    inside = html.escape(page, quote=True)
    style = f"width: 100%; height: {int(height)}px; border: 0"
    return f'<iframe sandbox="allow-scripts" style="{style}" title="stabkit" srcdoc="{inside}"></iframe>'


def data(value: Any) -> str:
    """The value as JSON for the inside of a `<script type="application/json">`: nothing in it can end the element.

    A number that is not finite becomes "nan", "inf" or "-inf"; every text is made printable.
    """
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return text.translate(_IN_SCRIPTS)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return printable(value) if isinstance(value, str) else value
