"""One cause is one finding: what an earlier finding explains is put inside it, the first mover first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stabkit.finding import Finding, Outcome, Severity

__all__ = ["gather"]

EXPLAINS: dict[str, frozenset[str]] = {
    "SK421": frozenset({"SK101", "SK102", "SK206"}),
    "SK101": frozenset({"SK102", "SK201", "SK202", "SK203", "SK204", "SK205", "SK206", "SK301", "SK308", "SK501", "SK507"}),
    "SK106": frozenset({"SK201", "SK202", "SK203", "SK204", "SK206", "SK301", "SK501", "SK507"}),
    "SK103": frozenset({"SK102", "SK201", "SK202", "SK203", "SK204", "SK205", "SK206", "SK301", "SK308"}),
    "SK102": frozenset({"SK201", "SK202", "SK203", "SK204", "SK205", "SK206", "SK301", "SK308", "SK501", "SK507"}),
    "SK302": frozenset({"SK102", "SK201", "SK202", "SK203", "SK204", "SK205", "SK206", "SK301", "SK303", "SK308"}),
    "SK308": frozenset({"SK201", "SK202", "SK203", "SK204", "SK205", "SK206", "SK301", "SK507"}),
    "SK508": frozenset({"SK201", "SK202", "SK203", "SK204", "SK206", "SK301"}),
    "SK305": frozenset({"SK501", "SK507"}),
    "SK501": frozenset({"SK504", "SK507"}),
    "SK504": frozenset({"SK507"}),
    "SK303": frozenset({"SK305"}),
    "SK401": frozenset({"SK503"}),
    "SK402": frozenset({"SK301"}),
    "SK406": frozenset({"SK201", "SK202", "SK203", "SK206"}),
    "SK205": frozenset({"SK201", "SK203", "SK204", "SK206"}),
    "SK203": frozenset({"SK201", "SK204", "SK206"}),
    "SK206": frozenset({"SK201", "SK203", "SK204", "SK205"}),
    "SK204": frozenset({"SK201", "SK203", "SK206"}),
    "SK201": frozenset({"SK203", "SK204", "SK206"}),
    "SK202": frozenset({"SK201", "SK507"}),
    "SK411": frozenset({"SK104"}),
}
"""What can follow from what. A loss that never returns or is not finite is never hidden behind a mere spike."""

ROOTS = ("SK421", "SK101", "SK106", "SK103", "SK102", "SK302", "SK508", "SK501", "SK504", "SK401", "SK402", "SK406")
"""Causes that stand before the others: they say why, the others what."""

WITHIN = 50
"""Records after the end of a cause within which what it explains can begin."""


def gather(outcomes: Iterable[Outcome], spacing: int = 1) -> tuple[Outcome, ...]:
    """The same outcomes with consequences moved inside the findings that explain them.

    An outcome whose findings all moved keeps its status and says where they went.

    Args:
        outcomes: Of all rules on one run.
        spacing: Steps from one record to the next.
    """
    outcomes = tuple(outcomes)
    rank = {code: i for i, code in enumerate(EXPLAINS)}
    everything = [finding for outcome in outcomes for finding in outcome.findings]
    known = (finding for finding in everything if finding.rule in EXPLAINS)
    causes = sorted(known, key=lambda f: (f.rule not in ROOTS, _good(f), rank[f.rule], f.first_step))
    inside: dict[int, list[Finding]] = {}
    taken: dict[int, Finding] = {}
    for cause in causes:
        if id(cause) in taken:
            continue
        for other in everything:
            free = other is not cause and id(other) not in taken and id(other) not in inside
            if free and _follows(other, cause, WITHIN * spacing):
                inside.setdefault(id(cause), []).append(other)
                taken[id(other)] = cause
    return tuple(_without(outcome, inside, taken) for outcome in outcomes)


def _follows(other: Finding, cause: Finding, within: int) -> bool:
    """Whether it can follow and began after the cause did, which is not when the cause could first be told."""
    if other.rule not in EXPLAINS[cause.rule]:
        return False
    if cause.severity == Severity.INFO < other.severity:  # what needs no action explains nothing that does
        return False
    return _good(cause) < began(other) <= cause.last_step + within


def _good(finding: Finding) -> int:
    return finding.first_step - 1 if finding.last_good_step is None else finding.last_good_step


def began(finding: Finding) -> int:
    """The step at which the trouble was first seen, known afterwards."""
    return finding.first_step if finding.event_step is None else min(finding.first_step, finding.event_step)


def _without(outcome: Outcome, inside: dict[int, list[Finding]], taken: dict[int, Finding]) -> Outcome:
    kept = tuple(
        replace(f, consequences=tuple(sorted(inside[id(f)], key=lambda c: c.first_step))) if id(f) in inside else f
        for f in outcome.findings
        if id(f) not in taken
    )
    if len(kept) == len(outcome.findings):
        return replace(outcome, findings=kept)
    cause = next(taken[id(f)] for f in outcome.findings if id(f) in taken)
    reason = outcome.reason if kept else f"explained by {cause.rule} {cause.name} at step {cause.first_step}"
    return replace(outcome, findings=kept, reason=reason)
