"""The shell of every page that stands alone: works from disk without a network, loads nothing, runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from stabkit.report.escape import data, markup
from stabkit.report.words import shortened

__all__ = ["document", "name_of", "notice", "section", "table"]


def document(title: str, sections: Iterable[str], figures: Any, scripts: Sequence[str]) -> str:
    """A page.

    Args:
        title: What it is about, as plain text.
        sections: Finished markup.
        figures: Plain data for the scripts, which find it in the element "figures".
        scripts: Names of files in `page/`, in the order in which they run.
    """
    style, code = _asset("page.css"), [_asset(name) for name in scripts]
    allowed = " ".join(_hash(script) for script in code)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {allowed}; base-uri 'none'; form-action 'none'"
    return "".join((
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
        f'<meta http-equiv="Content-Security-Policy" content="{markup(policy)}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="stabkit">\n',
        f"<title>{markup(shortened(title, 120))} · stabkit</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n",
        *sections,
        "</main>\n",
        f'<script type="application/json" id="figures">{data(figures)}</script>\n',
        *(f"<script>{script}</script>\n" for script in code),
        "</body>\n</html>\n",
    ))  # fmt: skip


def name_of(text: str) -> str:
    """A tensor's name: cut in the middle where it is very long, whole in its title."""
    short = shortened(text, 120)
    title = f' title="{markup(text)}"' if short != text else ""
    return f"<code{title}>{markup(short)}</code>"


def section(identity: str, title: str, *inside: str) -> str:
    """A section; the title and what is inside are finished markup."""
    return f'<section id="s-{identity}">\n<h2>{title}</h2>\n{"".join(inside)}\n</section>\n'


def notice() -> str:
    """What a reader without scripts is told."""
    return "<noscript><p class=\"quiet\">The pictures need JavaScript; all findings and their numbers are below.</p></noscript>"


def table(columns: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """A table of finished markup, given by columns: (title, attributes) -> cells."""
    head = "".join(f"<th{attributes}>{title}</th>" for title, attributes in columns)
    rows = "".join(
        f"<tr>{''.join(f'<td{attributes}>{cell}</td>' for (_, attributes), cell in zip(columns, row, strict=True))}</tr>"
        for row in zip(*columns.values(), strict=True)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _asset(name: str) -> str:
    return (files("stabkit.report") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
