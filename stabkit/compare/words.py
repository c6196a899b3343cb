"""A comparison in words, the same in every medium."""

from __future__ import annotations

import math

from stabkit.compare.exact import ROUNDING
from stabkit.compare.result import Comparison, Parting, Split, Verdict
from stabkit.report.words import count, listed, number, printable, shortened, span
from stabkit.runlog import RunLog

__all__ = ["about", "drawn", "explained", "headline", "how_far", "parted_at", "tensors_told"]

_HEADLINES = {
    Verdict.SAME: "the same, number for number",
    Verdict.ROUNDING: "the same but for rounding",
    Verdict.NOISE: "they differ, and nowhere beyond noise",
    Verdict.UNKNOWN: "they differ; too few steps in common to tell that from noise",
}
_WHERE = {
    "weights": "the weights differ before it: something else wrote to them, such as a checkpoint that was loaded",
    "optimizer state": "the optimizer's state differs: it was reset, or loaded from elsewhere",
    "loss": "the loss differs: other data, or chance in the forward pass such as dropout",
    "gradients": "the gradients differ: the backward pass, clipping or loss scaling, or something that writes to gradients",
    "updates": "the updates differ: the optimizer or its settings",
}
_TENSORS_SHOWN = 4
_CURVES = ("loss", "grad_norm", "grad_norm_used", "lr")


def headline(found: Comparison) -> str:
    """Where they part, in one line."""
    if found.verdict is not Verdict.PARTED:
        return f"{_HEADLINES[found.verdict]}, {count(found.common, 'step')} in common"
    parts = []
    if found.split:
        begins = found.split.same_until is None
        parts.append("they part at the beginning" if begins else f"they part at step {found.split.step}")
        parts.append(_first(found.split))
    if found.partings:
        first = found.partings[0]
        tensor = f" of {shortened(printable(first.tensor))}" if first.tensor else ""
        since = f"beyond noise from {about(found, first)}step {first.step} on, first in {first.metric}{tensor}"
        parts.append(since if found.split else f"they part {since}")
    elif found.split:
        parts.append("nowhere beyond noise" if found.looked_at else "too few steps to tell that from noise")
    return ", ".join(parts)


def about(found: Comparison, parting: Parting) -> str:
    """ "about " where the step is found from blocks of steps; a value that is no number, or the first step, is exact."""
    return "" if math.isinf(parting.times) or parting.step <= max(found.first, 1) else "about "


def _first(split: Split) -> str:
    """What differs first, and in which tensor."""
    alone = 0 < len(split.tensors) < split.compared
    return f"first in the {split.stage}" + (f" of {shortened(printable(split.tensors[0]))}" if alone else "")


def explained(found: Comparison) -> list[str]:
    """What that means, a sentence or two each."""
    said = []
    split = found.split
    if split:
        if split.same_until is None and split.stage == "weights":
            said.append("They begin with other weights: another seed, initialisation or checkpoint.")
        else:
            until = f"The same, number for number, up to step {split.same_until}. " if split.same_until is not None else ""
            still = f"{_and(split.same)} are still the same and " if split.same else ""
            settings = f" Set differently there: {', '.join(split.settings)}." if split.settings else ""
            sentence = f"{until}At step {split.step} {still}{_WHERE[split.stage]}.{settings}"
            said.append(sentence)
        told = tensors_told(split)
        said += [told] if told else []
        if found.verdict is Verdict.ROUNDING or (found.partings and split.size <= ROUNDING and not split.settings):
            said.append(f"The difference there is {number(split.size)} of the value: that of sums added in another order.")
    for each in (each for each in found.partings if math.isinf(each.times)):
        side = "A" if not math.isfinite(each.a) else "B"
        said.append(f"The {each.metric} of {side} is no number in {span(each.step, each.until)}.")
    if found.looked_at and not found.partings and found.verdict is not Verdict.SAME:
        looked = listed(list(found.looked_at), 6)
        said.append(f"No difference was larger than the noise for long, in {looked}.")
    return said


def tensors_told(split: Split) -> str:
    """Which tensors differ first."""
    if not split.tensors or not split.compared:
        return ""
    names = listed([shortened(printable(name)) for name in split.tensors], _TENSORS_SHOWN)
    later = f", measured at step {split.tensor_step}" if split.tensor_step not in (None, split.step) else ""
    if split.compared == 1:
        return f"In {names}{later}."
    if len(split.tensors) == split.compared:
        return f"All {split.compared} tensors differ at once{later}; relative to their size most in {names}."
    return f"Of {split.compared} tensors {len(split.tensors)} differ{'s' if len(split.tensors) == 1 else ''}{later}: {names}."


def parted_at(found: Comparison) -> int | None:
    """The step to mark in a picture; None where there is none."""
    if found.verdict is not Verdict.PARTED:
        return None
    return found.split.step if found.split else found.partings[0].step


def drawn(found: Comparison, a: RunLog, b: RunLog) -> list[str]:
    """The quantities of the whole step of which both runs' curves are worth showing."""
    shown = [name for name in _CURVES if a.has(name) and b.has(name)]
    if "grad_norm" in shown and "grad_norm_used" in shown:
        shown.remove("grad_norm_used")
    if "lr" in shown and not any(setting.name.split(",")[0].endswith("lr") for setting in found.settings):
        shown.remove("lr")
    return shown


def how_far(parting: Parting) -> str:
    """How large the difference is, beside the noise."""
    return "-" if math.isinf(parting.times) else f"{parting.times:.1f}"


def _and(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
