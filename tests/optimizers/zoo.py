"""The optimizers that are tried, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

from tests.optimizers.handmade import (
    AmbivalentAdam,
    BareState,
    BoundedAdamW,
    CourseAdamW,
    FaithfulAdamW,
    HandLion,
    HuggingFaceAdamW,
    OddMoments,
    PlainAdam,
    SignDescent,
    Stranger,
)
from tests.optimizers.training import Entry

__all__ = ["FRAMEWORKS", "HANDMADE", "TORCH", "ZOO"]

SINGLE, FOREACH, FUSED = {"foreach": False}, {"foreach": True}, {"fused": True}
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {"single": SINGLE, "foreach": FOREACH, "fused": FUSED}


def corrected(state: dict[str, Any], beta2: float, count: int) -> Tensor:
    """v̂ of an Adam that corrects."""
    v: Tensor = state["exp_avg_sq"] if "exp_avg_sq" in state else state["v"]
    return v.double() / (1 - beta2**count)


def uncorrected(state: dict[str, Any], beta2: float, count: int) -> Tensor:
    """v̂ of an Adam that does not."""
    v: Tensor = state["exp_avg_sq"]
    return v


def _of(
    cls: Callable[..., Any], *implementations: str, about: dict[str, Any] | None = None, **options: Any
) -> dict[str, Entry]:
    """An entry per implementation of a torch optimizer, by name of the implementation."""

    def maker(extra: dict[str, Any]) -> Callable[[list[Tensor]], Any]:
        return lambda params: cls(params, **options, **extra)

    found = {name: Entry(maker(IMPLEMENTATIONS[name]), **(about or {})) for name in implementations}
    return found or {"": Entry(maker({}), **(about or {}))}


ADAM: dict[str, Any] = {"derived": True, "second": corrected}
MOMENTS: dict[str, Any] = {"second": corrected}
BOTH = ("single", "foreach")
ALL = ("single", "foreach", "fused")

_TORCH: dict[str, dict[str, Entry]] = {
    "SGD": _of(optim.SGD, *ALL, lr=0.01),
    "SGD momentum": _of(optim.SGD, *ALL, lr=0.01, momentum=0.9, weight_decay=0.1),
    "SGD nesterov": _of(optim.SGD, *ALL, lr=0.01, momentum=0.9, nesterov=True),
    "SGD nesterov, maximize": _of(optim.SGD, *ALL, lr=0.01, momentum=0.9, nesterov=True, maximize=True),
    "Adam": _of(optim.Adam, *ALL, about=ADAM),
    "Adam with L2": _of(optim.Adam, *ALL, about=ADAM, weight_decay=0.1),
    "AdamW": _of(optim.AdamW, *ALL, about=ADAM, weight_decay=0.1),
    "AdamW amsgrad": _of(optim.AdamW, *ALL, about=ADAM, amsgrad=True),
    "AdamW maximize": _of(optim.AdamW, *ALL, about=ADAM, maximize=True),
    "NAdam": _of(optim.NAdam, *BOTH, about=MOMENTS, weight_decay=0.1),
    "RAdam": _of(optim.RAdam, *BOTH, about=MOMENTS, lr=0.01, weight_decay=0.1),
    "Adamax": _of(optim.Adamax, *BOTH, weight_decay=0.1),
    "Adagrad": _of(optim.Adagrad, *ALL, weight_decay=0.1),
    "RMSprop": _of(optim.RMSprop, *BOTH, lr=1e-3, momentum=0.1, weight_decay=0.1),
    "RMSprop centered": _of(optim.RMSprop, *BOTH, lr=1e-3, centered=True),
    "Adadelta": _of(optim.Adadelta, *BOTH, weight_decay=0.1),
    "Rprop": _of(optim.Rprop, *BOTH),
    "ASGD": _of(optim.ASGD, *BOTH, weight_decay=0.1),
    "LBFGS": _of(optim.LBFGS, about={"closure": True}, max_iter=4),
    "LBFGS strong Wolfe": _of(optim.LBFGS, about={"closure": True}, max_iter=4, line_search_fn="strong_wolfe"),
    "SparseAdam": _of(optim.SparseAdam, about={"kind": "sparse"}),
    "SGD, sparse gradients": _of(optim.SGD, about={"kind": "sparse"}, lr=0.1),
    "Adagrad, sparse gradients": _of(optim.Adagrad, about={"kind": "sparse"}, lr=0.1),
}  # fmt: skip
if hasattr(optim, "Adafactor"):
    _TORCH["Adafactor"] = _of(optim.Adafactor, *BOTH, weight_decay=0.1)
if hasattr(optim, "Muon"):
    _TORCH["Muon"] = _of(optim.Muon, about={"kind": "matrices"})

_HANDMADE: dict[str, Entry] = {
    "course AdamW (int `t` ahead by one, decay after the update)": Entry(CourseAdamW, **ADAM),
    "course AdamW with much decay": Entry(lambda ps: CourseAdamW(ps, lr=0.05, weight_decay=0.5), **ADAM),
    "Hugging Face's AdamW": Entry(lambda ps: HuggingFaceAdamW(ps, weight_decay=0.1), **ADAM),
    "Hugging Face's AdamW, correct_bias=False": Entry(
        lambda ps: HuggingFaceAdamW(ps, weight_decay=0.1, correct_bias=False), derived=True, second=uncorrected
    ),
    "Adam that decays into the gradient, beta1 and beta2 apart": Entry(PlainAdam, **ADAM),
    "a subclass of AdamW that adds nothing": Entry(FaithfulAdamW, **ADAM),
    "a subclass of AdamW with another update": Entry(BoundedAdamW),
    "two moments and an update upwards": Entry(AmbivalentAdam),
    "Lion by hand": Entry(HandLion),
    "no state": Entry(SignDescent),
    "state without keys": Entry(BareState),
    "moments that are none": Entry(OddMoments),
    "no rate, odd state, gradient as scratch space": Entry(Stranger),
}


def _from(package: str, name: str, **options: Any) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    """Makes an optimizer of a package that is imported only then; schedule-free ones are told that training begins."""

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        made = getattr(importlib.import_module(package), name)(params, **options)
        if hasattr(made, "train"):
            made.train()
        return made  # type: ignore[no-any-return]

    return make


_FRAMEWORKS: dict[str, Entry] = {
    "lion-pytorch: Lion": Entry(_from("lion_pytorch", "Lion", lr=1e-3, weight_decay=0.1), needs="lion_pytorch"),
    "schedulefree: AdamWScheduleFree": Entry(_from("schedulefree", "AdamWScheduleFree", lr=1e-3), needs="schedulefree"),
    "schedulefree: SGDScheduleFree": Entry(_from("schedulefree", "SGDScheduleFree", lr=0.1), needs="schedulefree"),
    "torchao: AdamW8bit": Entry(_from("torchao.optim", "AdamW8bit"), kind="wide", needs="torchao"),
    "bitsandbytes: AdamW8bit": Entry(_from("bitsandbytes.optim", "AdamW8bit"), kind="wide", needs="bitsandbytes"),
}

TORCH: dict[str, Entry] = {
    f"{name} ({implementation})" if implementation else name: entry
    for name, entries in _TORCH.items()
    for implementation, entry in entries.items()
}
HANDMADE, FRAMEWORKS = _HANDMADE, _FRAMEWORKS
ZOO: dict[str, Entry] = TORCH | HANDMADE | FRAMEWORKS
