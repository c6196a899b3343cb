"""Which rules are asked: codes, names and families on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stabkit.analyzers import Analyzer
    from stabkit.report.pages import RulePage

__all__ = ["Words", "chosen", "pages", "similar"]

Words = tuple[str, ...]


def chosen(select: Words, ignore: Words, require: Words) -> tuple[tuple[Analyzer, ...], Words, int]:
    """The rules to ask, the codes of those that must be able to look, and how many are left out."""
    from stabkit.analyzers import ANALYZERS

    wanted = _codes("--select", select) if select else {analyzer.rule.code for analyzer in ANALYZERS}
    wanted -= _codes("--ignore", ignore)
    required = _codes("--require", require)
    if not wanted:
        raise click.UsageError("--select and --ignore leave no rule to ask")
    if contradictory := ", ".join(sorted(required - wanted)):
        raise click.UsageError(f"--require names what --select or --ignore leave out: {contradictory}")
    asked = tuple(analyzer for analyzer in ANALYZERS if analyzer.rule.code in wanted)
    return asked, tuple(sorted(required)), len(ANALYZERS) - len(asked)


def _codes(option: str, values: Words) -> set[str]:
    """The codes meant by codes, names and families (SK1, also written SK1xx) in comma separated lists."""
    from stabkit.analyzers import ANALYZERS

    known = {analyzer.rule.code: analyzer.rule.name for analyzer in ANALYZERS}
    chosen: set[str] = set()
    for word in (word.strip() for value in values for word in value.split(",")):
        family = word.upper().rstrip("X")
        meant = {code for code in known if family.startswith("SK") and code.startswith(family)}
        meant |= {code for code, name in known.items() if name == word.lower()}
        if not meant:
            rules = ", ".join(f"{code} {name}" for code, name in known.items())
            near = similar(word, known)
            raise click.BadParameter(f"there is no rule {word!r}{near}. Known are {rules}", param_hint=option)
        chosen |= meant
    return chosen


def similar(word: str, known: dict[str, str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word.upper(), known, cutoff=0.7)
    near += get_close_matches(word.lower(), known.values(), cutoff=0.5)
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""


def pages() -> list[RulePage]:
    """The page of every rule of the catalogue."""
    from stabkit.analyzers import ANALYZERS
    from stabkit.analyzers.measured import sentence
    from stabkit.report.pages import RulePage

    def page(analyzer: Analyzer) -> RulePage:
        known = {name: getattr(analyzer.rule, name) for name in ("code", "name", "severity", "min_steps", "since")}
        needs = _needs(analyzer.rule.requires)
        needs += (" or ".join(_needs(analyzer.rule.any_of)),) if analyzer.rule.any_of else ()
        text = sys.modules[type(analyzer).__module__].__doc__ or ""
        return RulePage(**known, requires=needs, docstring=text, measured=sentence(analyzer.rule.code))

    return [page(analyzer) for analyzer in ANALYZERS]


def _needs(quantities: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(name if scope == "step" else f"{name} per {scope}" for name, scope in quantities)
