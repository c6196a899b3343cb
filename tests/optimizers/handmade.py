"""Optimizers as people write them themselves. None of them knows of stabkit, and none is torch's AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

Closure = Callable[[], Any] | None


class Handmade(Optimizer):
    """Steps every parameter that has a gradient by `update`."""

    usual: ClassVar[dict[str, Any]] = {}

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, self.usual | options)

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)
        return loss

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class CourseAdamW(Handmade):
    """As in many a course: the count of the step to come in `t`, eps outside the correction, decay after the update."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        t = state.get("t", 1)
        m = state.get("m", torch.zeros_like(p)) * beta1 + (1 - beta1) * g
        v = state.get("v", torch.zeros_like(p)) * beta2 + (1 - beta2) * g * g
        rate = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        p -= rate * m / (v.sqrt() + group["eps"])
        p -= lr * group["weight_decay"] * p
        state["t"], state["m"], state["v"] = t + 1, m, v


class HuggingFaceAdamW(Handmade):
    """As the one that transformers once had: `correct_bias`, a Python int `step`, eps inside the corrected step size."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0, "correct_bias": True}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), rate = group["betas"], group["lr"]
        if not state:
            state["step"], state["exp_avg"], state["exp_avg_sq"] = 0, torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["correct_bias"]:
            rate *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-rate)
        if group["weight_decay"] > 0:
            p.add_(p, alpha=-group["lr"] * group["weight_decay"])


class PlainAdam(Handmade):
    """With coupled decay that is written into the gradient, beta1 and beta2 apart, and a tensor as its count."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["beta1"], group["beta2"]
        if not state:
            state["step"], state["m"], state["v"] = torch.zeros(()), torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        t = float(state["step"])
        g.add_(p, alpha=group["weight_decay"])
        state["m"].lerp_(g, 1 - beta1)
        state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p -= group["lr"] * (state["m"] / (1 - beta1**t)) / ((state["v"] / (1 - beta2**t)).sqrt() + group["eps"])


class AnyAdam(Handmade):
    """Every way of writing an Adam, spelled out.

    Its options: `decay` is "before", "after" or "coupled"; `corrects` says whether it corrects, `ahead` whether it keeps the
    count of the step to come, `inner` whether it adds eps before the correction.
    """

    usual: ClassVar[dict[str, Any]] = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.5}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), lr, wd, eps = group["betas"], group["lr"], group["weight_decay"], group["eps"]
        first = 1 if group["ahead"] else 0
        if not state:
            state["step"], state["m"], state["v"] = first, torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        t = state["step"] - first
        if group["decay"] == "coupled":
            g = g + wd * p
        if group["decay"] == "before":
            p.mul_(1 - lr * wd)
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g.square()
        m, v = state["m"], state["v"]
        if not group["corrects"]:
            p.sub_(lr * m / (v.sqrt() + eps))
        elif group["inner"]:
            p.sub_(lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (v.sqrt() + eps))
        else:
            p.sub_(lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps))
        if group["decay"] == "after":
            p.mul_(1 - lr * wd)


class HandLion(Handmade):
    """Lion keeps one moment, under the name that Adam has for its own."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        m = state.setdefault("exp_avg", torch.zeros_like(p))
        p.mul_(1 - lr * group["weight_decay"])
        p.add_((m * beta1 + g * (1 - beta1)).sign_(), alpha=-lr)
        m.mul_(beta2).add_(g, alpha=1 - beta2)


class SignDescent(Handmade):
    """Keeps nothing at all."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.add_(g.sign(), alpha=-group["lr"])


class Stranger(Handmade):
    """No group has a rate, the state is a list, the gradient is scratch space, and decay moves what has no gradient."""

    usual: ClassVar[dict[str, Any]] = {"pace": 1e-3}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["history"] = [*state.get("history", []), float(g.norm())][-3:]
        g.mul_(group["pace"])
        p.sub_(g)

    def step(self, closure: Closure = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.999)
        return loss


class BareState(Handmade):
    """Its state is no dict of dicts: a parameter's is the momentum itself, and a count for all lies beside."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(p)) if isinstance(state, dict) else state
        momentum.mul_(0.9).add_(g)
        p.sub_(momentum, alpha=group["lr"])
        self.state[p] = momentum
        self.state["steps"] = self.state["steps"] + 1 if "steps" in self.state else 1  # type: ignore[index]


class OddMoments(Handmade):
    """Keeps what Adam keeps under Adam's names, but as numbers and in other shapes."""

    usual: ClassVar[dict[str, Any]] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["step"] = "first" if not state else "later"
        state["exp_avg"] = float(g.mean())
        state["exp_avg_sq"] = 0.9 * state.get("exp_avg_sq", torch.zeros(1)) + 0.1 * g.square().mean()
        p.sub_(g / (state["exp_avg_sq"].sqrt() + group["eps"]), alpha=group["lr"])


class BoundedAdamW(torch.optim.AdamW):
    """A subclass that does as AdamW and then halves what each weight was changed by: its state looks like any AdamW's."""

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:  # type: ignore[override]
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        loss = super().step(closure)
        for p, old in zip((p for group in self.param_groups for p in group["params"]), before, strict=True):
            p.lerp_(old, 0.5)
        return loss


class FaithfulAdamW(torch.optim.AdamW):
    """A subclass that adds nothing to what AdamW does."""


class AmbivalentAdam(Handmade):
    """Two moments, and an update that goes up where Adam's goes down: the norms of both are the same."""

    usual: ClassVar[dict[str, Any]] = HuggingFaceAdamW.usual

    def update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        before = p.clone()
        HuggingFaceAdamW.update(self, p, g, state, group)  # type: ignore[arg-type]
        p.copy_(2 * before - p)
