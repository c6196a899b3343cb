"""How numbers, counts and foreign text are written, the same in every medium that people read."""

from __future__ import annotations

import math

__all__ = ["count", "duration", "listed", "number", "printable", "share", "shortened", "size", "span"]


def printable(text: str) -> str:
    """The text on one line, with nothing in it that a terminal would obey.

    Names and remarks come from the log, hence from anywhere: newlines, escape sequences, invisible characters and those
    that turn the direction of writing are shown as backslash escapes.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(name: str, most: int = 60) -> str:
    """A long name with its middle left out: the beginning says which part of the model, the end which tensor."""
    if len(name) <= most:
        return name
    head, tail = name[: most // 2 - 1], name[-(most // 2) :]
    # Cut at a dot where one is near, so that parts of the name stay whole.
    if "." in head[most // 4 :]:
        head = head[: head.rindex(".") + 1]
    if "." in tail[: most // 4]:
        tail = tail[tail.index(".") + 1 :]
    return f"{head}…{tail}"


def number(value: float | None) -> str:
    """A number with as many digits as tell something; "" for none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    whole = value == round(value) or abs(value) >= 1000
    return f"{value:.0f}" if whole and abs(value) < 1e6 else f"{value:.4g}"


def share(value: float) -> str:
    """A proportion in per cent, without decimals."""
    return f"{100 * value:.0f} %"


def count(amount: int, noun: str) -> str:
    """Such as "1 step" or "12,000 steps"."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def span(first: int, last: int) -> str:
    """Such as "step 5" or "steps 5–37"."""
    return f"step {first}" if last <= first else f"steps {first}–{last}"


def listed(items: list[str], most: int) -> str:
    """The items separated by commas; of more than `most`, the first and how many others there are."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most:,} more"


def size(amount: int) -> str:
    """A number of bytes, such as "38 kB"."""
    scaled, units = float(amount), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while scaled >= 1000 and unit != "TB":
        scaled, unit = scaled / 1000, next(units)
    return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:.0f} {unit}"


def duration(seconds: float) -> str:
    """A length of time, such as "130 ms", "4 s", "12 min" or "3 h 20 min"."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
