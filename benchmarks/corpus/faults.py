"""What can be done to a healthy setting, and how each would be called where it does harm.

A fault changes a recipe; it never decides a label. Its class and rules name an event that the labeller found. A fault without a
class is a hard negative by intention: what it brings about, if anything, has the class of its outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.corpus.recipe import Disturbance, Recipe

__all__ = ["CLASSES", "FAULTS", "Fault", "acceptable"]

CLASSES: dict[str, tuple[str, ...]] = {
    "start": ("SK101", "SK102", "SK103"),
    "stale": ("SK204", "SK203", "SK201", "SK208", "SK209"),
    "decoupled": ("SK205", "SK207"),
    "batch": ("SK203", "SK201", "SK204", "SK208"),
    "growth": ("SK302", "SK304", "SK308", "SK505"),
    "scale": ("SK303", "SK305"),
    "precision": ("SK306",),
    "eps": ("SK504",),
    "rate": ("SK102", "SK206"),
    "wiring": ("SK401", "SK421"),
    "nonfinite": ("SK301",),
}
"""The rules that name each class of event rightly."""
KINDS: dict[str, tuple[str, ...]] = {
    "spike": ("SK201",),
    "divergence": ("SK202", "SK201"),
    "failure": ("SK202",),
    "stagnation": (),
    "collapse": ("SK303",),
    "nonfinite": ("SK301",),
}
"""The rules that describe an outcome itself."""


def acceptable(kind: str, label: str) -> list[str]:
    """The codes of the rules that would be right about an event."""
    return sorted({*CLASSES[label], *KINDS[kind]})


@dataclass(frozen=True)
class Fault:
    """A change to a healthy recipe.

    Attributes:
        label: The class of the events it causes; None where none is meant.
        apply: (recipe, size) -> the recipe with the fault.
        tensors: Where it sits, if in one place.
        remedies: Whether some remedy by numbers can heal it.
        against: What the run is compared with, made from the sick recipe; None where that is the healthy setting.
        facts: Rules that state what is so, whatever came of it: they are no false alarms where nothing did.
    """

    label: str | None
    apply: Callable[[Recipe, float], Recipe]
    tensors: dict[str, tuple[str, ...]] | None = None
    remedies: bool = True
    against: Callable[[Recipe], Recipe] | None = None
    facts: tuple[str, ...] = ()


GROWN = {"text": "blocks.1.fc2.weight", "vision": "9.weight", "regression": "2.weight", "recurrent": "head.weight"}
ATTENDING = ("blocks.0.query.weight", "blocks.0.key.weight")
NORMALISED = {"text": ("blocks.0.query.weight",), "vision": ("4.weight",), "recurrent": ("head.weight",)}
"""Weights before a normalisation: they may grow, and the loss does not tell."""


def _set(**names: Any) -> Callable[[Recipe, float], Recipe]:
    """Settings, of which those that are callable are given the size."""
    return lambda recipe, size: replace(recipe, **{k: v(size) if callable(v) else v for k, v in names.items()})


def _when(recipe: Recipe, share: float = 0.5) -> int:
    """A step that lies elsewhere for each seed."""
    return int(recipe.steps * share) + 7 * (recipe.seed % 10)


def _disturb(
    kind: str, span: int | None = 1, every: int = 1, share: float = 0.5, **settings: Any
) -> Callable[[Recipe, float], Recipe]:
    """Something from the middle of the run on, for `span` steps (None: to the end)."""

    def apply(recipe: Recipe, size: float) -> Recipe:
        first = _when(recipe, share)
        last = recipe.steps if span is None else first + span - 1
        return replace(recipe, disturbances=(*recipe.disturbances, Disturbance(kind, first, last, size, every)), **settings)

    return apply


def _grow(recipe: Recipe, size: float) -> Recipe:
    return replace(recipe, decay={GROWN[recipe.family]: -size})


def _overflow(recipe: Recipe, size: float) -> Recipe:
    options = {**recipe.options, "qk_norm": 1.0} if recipe.family == "text" else recipe.options
    growing = dict.fromkeys(NORMALISED[recipe.family], -size)
    return replace(recipe, decay=growing, options=options, precision="float16", init_scale=1024.0, schedule="constant")


def _always(kind: str) -> Callable[[Recipe, float], Recipe]:
    return lambda recipe, size: replace(recipe, disturbances=(Disturbance(kind, 1, recipe.steps, size),))


def _resume(keep: bool, **settings: Any) -> Callable[[Recipe, float], Recipe]:
    return lambda recipe, size: replace(recipe, resume=_when(recipe), keep_moments=keep, **settings)


FAULTS: dict[str, Fault] = {
    "nowarmup": Fault("start", lambda r, size: replace(r, warmup=0, lr=r.lr * size)),
    "init": Fault("start", _set(init_factor=lambda size: {"": size})),
    "shift": Fault("stale", _disturb("shift", None, clip=0.0)),
    "rare": Fault("stale", _disturb("rare", 3, clip=0.0)),
    "gradient": Fault("batch", _disturb("gradient", clip=0.0)),
    "gradient-clipped": Fault("batch", _disturb("gradient", clip=1.0)),
    "noise": Fault("batch", _disturb("noise", 2, clip=0.0)),
    "noise-clipped": Fault("batch", _disturb("noise", 2, clip=1.0)),
    "rescaled": Fault("stale", lambda r, size: _disturb("gradient", None, clip=0.0)(replace(r, lr=r.lr * 5), size),
                      against=lambda r: replace(r, disturbances=())),
    "beta2": Fault("decoupled", _set(beta2=lambda size: size)),
    "grow": Fault("growth", _grow, {family: (name,) for family, name in GROWN.items()}),
    "grow-fp16": Fault("growth", lambda r, size: replace(_grow(r, size), precision="float16", init_scale=1024.0),
                       {family: (name,) for family, name in GROWN.items()}),
    "overflow": Fault("growth", _overflow, NORMALISED),
    "attention": Fault("growth", _set(decay=lambda size: dict.fromkeys(ATTENDING, -size)),
                       {"text": ATTENDING, "vision": ATTENDING}),
    "nan-batches": Fault("scale", _disturb("nan", None, every=2, precision="float16"), remedies=False),
    "underflow": Fault("scale", _set(precision="float16", init_scale=lambda size: size, growth_interval=100_000)),
    "bf16": Fault("precision", lambda r, size: replace(r, precision="bfloat16-weights", lr=r.lr * size)),
    "eps": Fault("eps", _set(eps=lambda size: size)),
    "jump": Fault("rate", _disturb("rate", None)),
    "pulse": Fault("rate", _disturb("rate", 20)),
    "moments": Fault("wiring", lambda r, size: replace(_resume(False)(r, size), lr=r.lr * size),
                     against=lambda r: replace(r, keep_moments=True), facts=("SK421",)),
    "unscale": Fault("wiring", _set(precision="float16", unscale=False, clip=1.0, init_scale=lambda size: size),
                     facts=("SK401",)),
    "zero-division": Fault("nonfinite", _disturb("nan"), remedies=False),
    # Suspicious, and meant to do no harm.
    "rate": Fault(None, lambda r, size: replace(r, lr=r.lr * size)),
    "restarts": Fault(None, lambda r, size: replace(r, schedule="restarts", period=r.steps // int(size))),
    "labels": Fault(None, _always("labels")),
    "heavy": Fault(None, _always("heavy")),
    "mixed": Fault(None, _always("mixed")),
    "plateau": Fault(None, lambda r, size: replace(r, lr=r.lr * size, schedule="constant")),
    "epochs": Fault(None, _set(period=lambda size: int(size), schedule="constant")),
    "hard": Fault(None, _disturb("hard", None)),
    "fp16": Fault(None, _set(precision="float16", init_scale=lambda size: size)),
    "decay": Fault(None, _set(weight_decay=lambda size: size)),
    "resumed": Fault(None, _resume(True)),
    "memory": Fault(None, _set(beta2=lambda size: size)),
}  # fmt: skip
