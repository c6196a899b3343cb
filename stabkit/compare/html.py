"""A comparison as one HTML file, in the shell of the report: works from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stabkit.compare.result import Comparison, Parting, Setting, Side, Verdict
from stabkit.compare.words import drawn, explained, headline, how_far, parted_at
from stabkit.errors import StabkitError
from stabkit.report.escape import markup
from stabkit.report.figures import curve
from stabkit.report.movers import between
from stabkit.report.shell import document, name_of, notice, section, table
from stabkit.report.words import count, listed, number, shortened
from stabkit.runlog import RunLog, Series

__all__ = ["page", "pictures"]

_SCRIPTS = ("chart.js", "curves.js", "pairs.js")
_POINTS = 1200
_TENSORS_DRAWN, _PARTINGS_SHOWN = 6, 60
_LABELS = {"loss": "Loss", "grad_norm": "Gradient norm", "grad_norm_used": "Gradient norm, as used", "lr": "Learning rate"}
_BADGES = {Verdict.PARTED: ("warning", "▲ parted"), Verdict.UNKNOWN: ("warning", "▲ not told")}


def page(found: Comparison, a: RunLog, b: RunLog) -> str:
    """The page.

    Args:
        found: What was found.
        a: The first run.
        b: The second.
    """
    figures = pictures(found, a, b)
    frames = [f'<figure class="chart pair" data-pair="{place}"></figure>' for place in range(len(figures))]
    whole = sum(not figure["tensor"] for figure in figures)
    tensors = f'<div class="plots pairs">{"".join(frames[whole:])}</div>' if frames[whole:] else ""
    sections = (
        _verdict(found),
        _settings(found.settings),
        section("curves", "Side by side", "".join(frames[:whole]), tensors, notice()) if figures else "",
        _partings(found),
        _notes(found),
    )
    title = f"{found.a.path or 'A'} and {found.b.path or 'B'}"
    return document(title, sections, figures, _SCRIPTS)


def pictures(found: Comparison, a: RunLog, b: RunLog) -> list[dict[str, Any]]:
    """The curves of both runs: of the whole step, then of the tensors that differ first.

    Returns:
        Each with "title", "tensor" (or ""), "runs" ("name" and "line"), "linear", "mark" (the step at which they part, or
        None) and "says".
    """
    mark = parted_at(found)
    about = {"mark": mark, "says": f"step {mark}" if mark is not None else ""}
    shown: list[tuple[str, str, str | None]] = [(_LABELS[name], name, None) for name in drawn(found, a, b)]
    shown += [(f"{metric} of {shortened(tensor, 70)}", metric, tensor) for metric, tensor in _tensors(found)]
    pairs = []
    for title, metric, tensor in shown:
        lines = [_line(run, metric, tensor) for run in (a, b)]
        if all(lines):
            names = [f"{label} {side.path or 'run in memory'}" for label, side in (("A", found.a), ("B", found.b))]
            runs = [{"name": name, "line": line} for name, line in zip(names, lines, strict=True)]
            pairs.append({"title": title, "tensor": tensor or "", "runs": runs, "linear": metric == "lr", **about})
    return pairs


def _tensors(found: Comparison) -> list[tuple[str, str]]:
    """Quantity and tensor of what differs first: beyond noise, or else where the runs stopped being the same."""
    beyond = [(parting.metric, parting.tensor) for parting in found.partings if parting.tensor]
    split = [("grad_norm_used", name) for name in found.split.tensors] if found.split and not beyond else []
    return list(dict.fromkeys([*beyond, *split]))[:_TENSORS_DRAWN]


def _line(run: RunLog, metric: str, tensor: str | None) -> dict[str, Any] | None:
    for index in range(len(run.streams)):
        seen = run.optimizer(index)
        if tensor is not None and tensor not in {info.name for info in seen.tensors}:
            continue
        try:
            drawn_line = curve(_series(seen, metric, tensor), _POINTS)
        except (StabkitError, KeyError):
            continue
        return drawn_line if np.isfinite(drawn_line["values"]).any() else None
    return None


def _series(run: RunLog, metric: str, tensor: str | None) -> Series:
    if tensor is None:
        return run.series(metric)
    column = [info.name for info in run.tensors].index(tensor)
    alone = replace(run, streams=(run.stream.only(column),), index=0)  # of a log of gigabytes only what is drawn
    return between(alone, 1, int(run.steps[-1])).series(metric, tensor)


def _verdict(found: Comparison) -> str:
    kind, badge = _BADGES.get(found.verdict, ("clear", "✓ not parted"))
    sides = "".join(f'<p class="run">{_side(name, side)}</p>' for name, side in (("A", found.a), ("B", found.b)))
    told = headline(found)
    said = "".join(f'<p class="coverage">{markup(sentence)}</p>' for sentence in explained(found))
    return (
        f'<header class="verdict pairs">{sides}<p class="kicker"><span class="severity {kind}">{badge}</span></p>'
        f"<h1>{markup(told[:1].upper() + told[1:])}.</h1>{said}</header>\n"
    )


def _side(name: str, side: Side) -> str:
    steps = f"{count(side.steps, 'step')}, {side.first} to {side.last}, recorded by {side.source}"
    return f'<b>{name}</b> {name_of(side.path or "run in memory")} <span class="quiet">· {markup(steps)}</span>'


def _settings(settings: Sequence[Setting]) -> str:
    if not settings:
        return section("settings", "Set differently", '<p class="quiet">Nothing that was recorded.</p>')
    columns = {
        ("setting", ""): [markup(each.name) for each in settings],
        ("A", ""): [markup(shortened(each.a, 500)) for each in settings],
        ("B", ""): [markup(shortened(each.b, 500)) for each in settings],
        ("from step", ' class="n"'): ["" if each.step is None else str(each.step) for each in settings],
    }
    return section("settings", "Set differently", table({key: cells for key, cells in columns.items() if any(cells)}))


def _partings(found: Comparison) -> str:
    if not found.partings:
        return ""
    shown: Sequence[Parting] = found.partings[:_PARTINGS_SHOWN]
    columns = {
        ("quantity", ""): [markup(each.metric) for each in shown],
        ("tensor", ""): [name_of(each.tensor) if each.tensor else "" for each in shown],
        ("steps", ' class="n"'): [f"{each.step}–{each.until}" for each in shown],
        ("A", ' class="n"'): [number(float(f"{each.a:.4g}")) for each in shown],
        ("B", ' class="n"'): [number(float(f"{each.b:.4g}")) for each in shown],
        ("times the noise", ' class="n"'): [how_far(each) for each in shown],
    }
    more = len(found.partings) - len(shown)
    rest = f'<p class="quiet">and {more:,} more</p>' if more > 0 else ""
    looked = f'<p class="quiet">Looked for in {markup(listed(list(found.looked_at), 8))}.</p>'
    return section("beyond", "Beyond noise", table({key: cells for key, cells in columns.items() if any(cells)}), rest, looked)


def _notes(found: Comparison) -> str:
    items = "".join(f"<li>{markup(shortened(note, 2000))}</li>" for note in found.notes)
    return section("notes", "Notes", f"<ul>{items}</ul>") if items else ""
