"""A finding as TensorBoard's Text dashboard shows it: Markdown, in which nothing that came from the log is markup."""

from __future__ import annotations

import html
import re

from stabkit.finding import Finding, Severity
from stabkit.report.verdict import batches, restart, when
from stabkit.report.words import listed, number, printable, shortened

__all__ = ["markdown", "tag_of"]

_EVIDENCE_SHOWN, _TENSORS_SHOWN = 8, 6
_HEAD = ("| quantity | step | observed | expected | tensor | note |", "|---|---|---|---|---|---|")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|])")


def tag_of(finding: Finding) -> str:
    """A tag for each rule: of one tag TensorBoard keeps the steps in order only, and rules look back by different lengths."""
    return f"findings/{finding.rule} {finding.name}"


def markdown(finding: Finding) -> str:
    """The finding with its numbers and its advice."""
    lines = [
        f"**{finding.severity}** {_plain(finding.rule)} {_plain(finding.name)}, {_plain(when(finding))}",
        _plain(finding.message),
    ]
    if finding.evidence:
        rows = [
            f"| {_plain(item.metric)} | {'' if item.step is None else item.step} | {_plain(number(item.observed))} | "
            f"{_plain(number(item.expected))} | {_plain(shortened(item.tensor or ''))} | {_plain(item.note)} |"
            for item in finding.evidence[:_EVIDENCE_SHOWN]
        ]
        lines.append("\n".join([*_HEAD, *rows]))
    named = listed([shortened(name) for name in finding.tensors], _TENSORS_SHOWN)
    back = finding.last_good_step if finding.severity > Severity.INFO else None
    about = {
        "where": named,
        "batch": batches(finding),
        "restart": "" if back is None else restart(back),
        "try": finding.advice,
        "led to": "; ".join(f"{each.rule} {each.name} at step {each.first_step}" for each in finding.consequences),
    }
    lines += [f"**{label}** {_plain(text)}" for label, text in about.items() if text]
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown, and the HTML that it may hold, leave as it is."""
    return html.escape(_SPECIAL.sub(r"\\\1", printable(text)), quote=False)
