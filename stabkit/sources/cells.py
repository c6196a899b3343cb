"""What one cell of a foreign log says: a number, nothing, or something that is no number."""

from __future__ import annotations

import re

__all__ = ["NUMBER", "Cell", "read_cell"]

Cell = float | str | None
"""A number; None for a cell that is there and says nothing; text as it stands."""

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|[nN][aA][nN]|[iI]nf(?:inity)?|INF(?:INITY)?)"
"""A number as programs print it, NaN and infinities included."""

_NOTHING = frozenset({"", "-", "--", "none", "null", "na", "n/a", "#n/a", "<na>", "nil", "missing"})
_WORDS = {"true": 1.0, "false": 0.0}
_TENSOR = re.compile(rf"(?:tensor|array)\(\s*\[?\s*({NUMBER})\s*\]?\s*(?:,.*)?\)\Z")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_SPECIAL = {"1.#inf": float("inf"), "-1.#inf": float("-inf"), "1.#qnan": float("nan"), "-1.#ind": float("nan")}


def read_cell(text: str, decimal_comma: bool = False) -> Cell:
    """Read a cell.

    An empty cell is missing. So are the words for "nothing" (null, None, NA); the words NaN and Infinity are values.

    Args:
        text: What stands in it.
        decimal_comma: Whether 1,5 is one and a half.
    """
    try:
        return float(text)
    except ValueError:
        pass
    word = text.strip().lower()
    if word in _NOTHING:
        return None
    if word in _WORDS:
        return _WORDS[word]
    if word in _SPECIAL:
        return _SPECIAL[word]
    if not decimal_comma and _THOUSANDS.fullmatch(word):
        return float(word.replace(",", ""))
    if decimal_comma and word.count(",") == 1:
        return read_cell(word.replace(",", "."))
    if word.endswith("%"):
        return read_cell(word[:-1], decimal_comma)
    if match := _TENSOR.match(word):  # a tensor that was written without .item()
        return float(match[1])
    return text
