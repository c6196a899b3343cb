"""Two runs side by side: where they part, in what, and what was set differently."""

from __future__ import annotations

from stabkit.compare.common import pairs_of
from stabkit.compare.exact import ROUNDING, split_of
from stabkit.compare.noise import LEAST
from stabkit.compare.parting import partings_of
from stabkit.compare.result import Comparison, Parting, Setting, Side, Split, Verdict
from stabkit.compare.settings import settings_of
from stabkit.errors import MissingMetricError
from stabkit.metric import FORWARD_METRICS
from stabkit.report.words import count
from stabkit.runlog import RunLog

__all__ = ["Comparison", "Parting", "Setting", "Side", "Split", "Verdict", "compare"]


def compare(a: RunLog, b: RunLog) -> Comparison:
    """Compare two runs, whoever logged them.

    Args:
        a: The first.
        b: The second.

    Returns:
        Where they part and what was set differently. Two runs that began alike, number for number, are told apart at the
        first number that differs; any others by what differs beyond noise (`stabkit.compare.noise`).

    Raises:
        MissingMetricError: they have no step, or no quantity, in common.
    """
    pairs = pairs_of(a, b)
    names = [run.path or name for run, name in ((a, "the first run"), (b, "the second run"))]
    if not pairs or not len(pairs[0].steps):
        raise MissingMetricError(f"{names[0]} and {names[1]} have no step in common: {_extent(a)} and {_extent(b)}")
    split, alike = split_of(pairs)
    partings, looked_at = partings_of(pairs)
    if not looked_at and not alike and not partings and not any(pairs[0].has_step(name) for name in ("loss", "grad_norm")):
        raise MissingMetricError(
            f"{names[0]} and {names[1]} have no quantity in common that could be compared: {_held(a)} and {_held(b)}. "
            "If a column was not recognised: --map loss=COLUMN"
        )
    first, last = int(pairs[0].steps[0]), int(pairs[0].steps[-1])
    if partings or (split and (split.size > ROUNDING or split.settings)):
        verdict = Verdict.PARTED
    elif alike:
        verdict = Verdict.ROUNDING if split else Verdict.SAME
    else:
        verdict = Verdict.NOISE if looked_at else Verdict.UNKNOWN
    return Comparison(
        a=_side(a),
        b=_side(b),
        common=len(pairs[0].steps),
        first=first,
        last=last,
        verdict=verdict,
        split=split,
        partings=tuple(partings),
        looked_at=looked_at,
        settings=tuple(settings_of(a, b, pairs)),
        notes=tuple(_notes(a, b, len(pairs[0].steps), looked_at)),
    )


def _side(run: RunLog) -> Side:
    first, last = (int(run.steps[0]), int(run.steps[-1])) if len(run.steps) else (0, 0)
    return Side(path=run.path, source=run.source, steps=len(run.steps), first=first, last=last)


def _extent(run: RunLog) -> str:
    return f"steps {run.steps[0]} to {run.steps[-1]}" if run.streams and len(run.steps) else "none"


def _held(run: RunLog) -> str:
    return ", ".join([*run.stream.step_values, *run.scalars][:8]) or "nothing"


def _notes(a: RunLog, b: RunLog, common: int, looked_at: tuple[str, ...]) -> list[str]:
    found = []
    bare = [name for name, run in (("A", a), ("B", b)) if not any(stream.tensors for stream in run.streams)]
    if len(bare) == 1:
        found.append(f"{bare[0]} recorded no tensors: only losses, norms and rates of the whole step are compared")
    for metric in (each.name for each in FORWARD_METRICS if each.scope == "layer"):
        held = [name for name, run in (("A", a), ("B", b)) if run.has(metric, "layer")]
        if held:
            who = "A and B" if len(held) == 2 else f"{held[0]} alone"
            found.append(f"{who} recorded {metric} per layer: not compared, for what is usual between two seeds is not known")
    for name, run in (("A", a), ("B", b)):
        others = len(run.steps) - common
        if others:
            found.append(f"{count(others, 'step')} of {name} {'is' if others == 1 else 'are'} not in the other run: left out")
    if common < LEAST:
        found.append(f"fewer than {LEAST} steps in common: too few to tell a difference from noise")
    return found
