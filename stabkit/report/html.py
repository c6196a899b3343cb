"""A run as one HTML file: works from disk without a network, in light and dark, on paper, and without colour.

Texts and numbers stand in the markup; the pictures are drawn by the page's own small scripts from the figures it carries. No
plotting library is embedded: plotly's would be 4.5 MB a page and slow to open. A policy in the page forbids it to load
anything and to run any script but these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isinf

from stabkit.finding import Diagnosis, Finding, Severity, Status
from stabkit.report.escape import markup
from stabkit.report.figures import figures
from stabkit.report.info import extent, facts, kind, marks
from stabkit.report.movers import AFTER, LEAD, LIMIT, PAST, Mover, movers
from stabkit.report.shell import document, name_of, notice, section, table
from stabkit.report.sparkline import SIGN
from stabkit.report.verdict import amounts, batches, by_reason, looked, no_occasion, restart, when
from stabkit.report.words import count, listed, number, share, shortened
from stabkit.runlog import RunLog

__all__ = ["page"]

_SCRIPTS = ("chart.js", "heatmap.js", "page.js")
_EVIDENCE_SHOWN, _TENSORS_SHOWN, _MOVERS_SHOWN, _REPEATED = 12, 6, 12, 20


def page(run: RunLog, diagnosis: Diagnosis, left_out: int = 0) -> str:
    """The page.

    Args:
        run: The run that was judged.
        diagnosis: What was found in it.
        left_out: How many rules of the catalogue were not asked.
    """
    drawn = figures(run, diagnosis)
    sections = (
        _verdict(diagnosis, left_out),
        section("timeline", "The run", '<figure id="timeline" class="chart"></figure>' + notice()) if len(run.steps) else "",
        _heatmaps(bool(drawn["heatmaps"])),
        _first_movers(*movers(run, diagnosis)),
        _findings(diagnosis.findings),
        _checked(diagnosis, left_out),
        _facts(run, diagnosis),
    )
    return document(run.path or "this run", sections, drawn, _SCRIPTS)


def _severity(severity: Severity) -> str:
    return f'<span class="severity {severity}"><span aria-hidden="true">{SIGN[severity]}</span> {severity}</span>'


def _verdict(diagnosis: Diagnosis, left_out: int) -> str:
    able, asked = looked(diagnosis.outcomes)
    missed = f"; {asked - able} could not" if asked > able else ""
    apart = f"; {left_out} not asked" if left_out else ""
    coverage = f"{able} of the {count(asked, 'rule')} about this run looked{missed}{apart}."
    steps = f'<span class="quiet"> · {count(diagnosis.steps, "step")}</span>'
    name = f'<p class="run">{name_of(diagnosis.path or "this run")}{steps}</p>'
    if not diagnosis.findings:
        good = able > 0
        title = "Nothing was found." if good else "This run could not be judged."
        kicker = '<p class="kicker"><span class="severity clear">✓ clear</span></p>' if good else (
            '<p class="kicker"><span class="severity warning">▲ not judged</span></p>')  # fmt: skip
        return f'<header class="verdict">{name}{kicker}<h1>{title}</h1><p class="coverage">{markup(coverage)}</p></header>\n'
    worst = diagnosis.findings[0]
    kicker = f'{_severity(worst.severity)} <a href="#f1">{markup(worst.rule)} {markup(worst.name)}</a>'
    total = f"In all {amounts(diagnosis.findings)} in {count(diagnosis.steps, 'step')}. {coverage}"
    try_this = f'<p class="advice"><b>Try</b> {markup(worst.advice)}</p>' if worst.advice else ""
    return (
        f'<header class="verdict">{name}<p class="kicker">{kicker} <span class="quiet">{markup(when(worst))}</span></p>'
        f'<h1>{markup(_sentence(worst.message))}</h1>{try_this}<p class="coverage">{markup(total)}</p></header>\n'
    )


def _sentence(text: str) -> str:
    """With a capital at its beginning, unless that is a name, and a full stop at its end."""
    begins = text.split(" ", 1)[0].rstrip(":,;").isalpha()
    return (text[:1].upper() + text[1:] if begins else text) + ("" if text.endswith((".", "!", "?")) else ".")


def _heatmaps(any_drawn: bool) -> str:
    if not any_drawn:
        said = '<p class="quiet">Nothing was recorded per tensor, so there is no picture of the tensors.</p>'
        return section("tensors", "The tensors", said)
    return section("tensors", "The tensors", '<div id="heatmap"></div>')


def _first_movers(finding: Finding | None, ranking: Sequence[Mover]) -> str:
    if finding is None:
        return ""
    how = (
        f"Tensors with a quantity more than {LIMIT:g} robust standard deviations above the median of its own logarithm in the "
        f"{PAST} steps before step {finding.first_step - LEAD}, looked for up to step {finding.first_step + AFTER}; an "
        f"observation, not a verdict."
    )
    what = f"{markup(finding.rule)} {markup(finding.name)} at step {finding.first_step}"
    about = f'<p class="quiet">Before and around {what}. {how}</p>'
    if finding.first_step <= LEAD + 8:
        early = f'<p class="quiet">{what} came too early: no tensor had a past to be held against.</p>'
        return section("movers", "Who moved first", early)
    if not ranking:
        return section("movers", "Who moved first", about, "<p>No tensor did.</p>")
    shown = ranking[:_MOVERS_SHOWN]
    ranks = table({
        ("", ' class="quiet"'): [str(place) for place in range(1, len(shown) + 1)],
        ("tensor", ""): [name_of(mover.tensor) for mover in shown],
        ("step", ' class="n"'): [str(mover.step) for mover in shown],
        ("quantity", ""): [markup(mover.label) for mover in shown],
        ("usual", ' class="n"'): [number(mover.usual) for mover in shown],
        ("there", ' class="n"'): [number(mover.value) for mover in shown],
        ("deviations", ' class="n"'): ["—" if isinf(mover.deviation) else f"{mover.deviation:.0f}" for mover in shown],
    })  # fmt: skip
    more = len(ranking) - _MOVERS_SHOWN
    rest = f'<p class="quiet">and {count(more, "more tensor")}</p>' if more > 0 else ""
    return section("movers", "Who moved first", about, ranks, rest)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    seen: dict[str, int] = {}
    cards, more = [], dict[str, list[str]]()
    for place, finding in enumerate(findings, 1):
        seen[finding.rule] = seen.get(finding.rule, 0) + 1
        if seen[finding.rule] <= _REPEATED:
            cards.append(_card(place, finding))
        else:
            more.setdefault(finding.rule, []).append(str(finding.first_step))
    rest = "".join(
        f'<p class="quiet">and {count(len(steps), "more finding")} of {markup(rule)}, at steps {listed(steps, 12)}</p>'
        for rule, steps in more.items()
    )
    return section("findings", "Findings", *cards, rest)


def _card(place: int, finding: Finding) -> str:
    where = _names(finding.tensors)
    rows = [
        ("where", where),
        ("batch", markup(batches(finding))),
        ("restart", markup(restart(finding.last_good_step)))
        if finding.last_good_step is not None and finding.severity > Severity.INFO
        else ("", ""),
        ("try", f"<strong>{markup(finding.advice)}</strong>" if finding.advice else ""),
        ("trust", markup(_trust(finding))),
        ("led to", _consequences(finding.consequences)),
    ]
    told = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in rows if text)
    return (
        f'<article class="card {finding.severity}" id="f{place}">'
        f'<p class="kicker"><span class="place">{place}</span> {_severity(finding.severity)} '
        f'<b>{markup(finding.rule)}</b> {markup(finding.name)} <span class="quiet">{markup(when(finding))}</span></p>'
        f"<h3>{markup(_sentence(finding.message))}</h3>"
        f'<div class="plots" data-finding="{place - 1}"></div>{_evidence(finding)}<dl>{told}</dl></article>\n'
    )


def _names(names: Sequence[str]) -> str:
    """The first few names; the others fold out."""
    shown = ", ".join(name_of(name) for name in names[:_TENSORS_SHOWN])
    rest = names[_TENSORS_SHOWN:]
    if not rest:
        return shown
    folded = ", ".join(name_of(name) for name in rest)
    return f"{shown} <details><summary>and {len(rest):,} more</summary>{folded}</details>"


def _trust(finding: Finding) -> str:
    if not finding.confidence:
        return ""
    right, low, high = finding.confidence
    return f"right in {share(right)} of the cases it was measured on ({share(low)} to {share(high)})"


def _evidence(finding: Finding) -> str:
    shown = finding.evidence[:_EVIDENCE_SHOWN]
    if not shown:
        return ""
    columns = {
        ("quantity", ""): [markup(item.metric) for item in shown],
        ("step", ' class="n"'): ["" if item.step is None else str(item.step) for item in shown],
        ("observed", ' class="n"'): [number(item.observed) for item in shown],
        ("expected", ' class="n"'): [number(item.expected) for item in shown],
        ("tensor", ""): [name_of(item.tensor) if item.tensor else "" for item in shown],
        ("note", ""): [markup(item.note) for item in shown],
    }
    more = len(finding.evidence) - len(shown)
    rest = f'<p class="quiet">and {count(more, "more number")}</p>' if more > 0 else ""
    return table({title: cells for title, cells in columns.items() if any(cells)}) + rest


def _consequences(consequences: Sequence[Finding]) -> str:
    items = "".join(
        f"<li>{_severity(each.severity)} <b>{markup(each.rule)}</b> {markup(each.name)} at step {each.first_step}: "
        f"{markup(each.message)}{_consequences(each.consequences)}</li>"
        for each in consequences
    )
    return f"<ul>{items}</ul>" if items else ""


def _checked(diagnosis: Diagnosis, left_out: int) -> str:
    clear = {outcome.rule: outcome for outcome in diagnosis.outcomes if outcome.status is Status.CLEAR}
    rules = _rules(outcome.rule + " " + outcome.name for outcome in clear.values())
    parts = [("Looked, and found nothing", f"<p>{rules or 'None.'}</p>")]
    titles = {Status.NOT_APPLICABLE: "Could not look", Status.FAILED: "Failed: a fault of stabkit, not of your run"}
    for status, title in titles.items():
        reasons = by_reason(diagnosis.outcomes, status)
        items = "".join(
            f'<li>{_rules(o.rule + " " + o.name for o in outcomes)} <span class="quiet">— {markup(reason)}</span></li>'
            for reason, outcomes in reasons.items()
        )
        if items:
            parts.append((title, f"<ul>{items}</ul>"))
    absent = no_occasion(diagnosis.outcomes)
    if absent:
        parts.append(("Not about this run", f'<p class="quiet">{_rules(o.rule + " " + o.name for o in absent)}</p>'))
    if left_out:
        parts.append(("Not asked", f"<p>{count(left_out, 'rule')}</p>"))
    return section("checked", "What was checked", *(f"<h3>{title}</h3>{text}" for title, text in parts))


def _rules(names: Iterable[str]) -> str:
    return ", ".join(f'<span class="rule">{markup(name)}</span>' for name in names)


def _facts(run: RunLog, diagnosis: Diagnosis) -> str:
    told = {"steps": extent(run)} if run.streams else {}
    told |= facts(run)
    for index in range(len(run.streams)):
        seen = run.optimizer(index)
        label = f"optimizer {index}" if len(run.streams) > 1 else "optimizer"
        size = f"{count(len(seen.tensors), 'tensor')}, {count(sum(t.numel for t in seen.tensors), 'parameter')}"
        told[label] = ", ".join(part for part in (kind(seen), size) if part)
    if run.attempts > 1:
        told["attempt"] = f"{run.attempt} of {run.attempts}, counted from 0"
    rows = "".join(f"<dt>{markup(label)}</dt><dd>{markup(shortened(text, 2000))}</dd>" for label, text in told.items())
    lists = "".join(
        f"<h3>{title}</h3><ul>{''.join(f'<li>{markup(shortened(item, 2000))}</li>' for item in items)}</ul>"
        for title, items in (("Marks", marks(run)), ("Notes on the log", list(diagnosis.notes)))
        if items
    )
    return section("facts", "Facts", f"<dl>{rows}</dl>", lists)
