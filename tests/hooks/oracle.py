"""What a log must hold, worked out by hand in float64 around every step. Knows torch's AdamW and nothing of stabkit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

NAN = math.nan
IDLE = {"update_norm": 0.0, "update_absmax": 0.0, "weight_update_dot": 0.0}
"""What is known of a tensor without a gradient: the optimizer passes over it."""


def flat(tensor: torch.Tensor | None) -> np.ndarray | None:
    if tensor is None:
        return None
    wide = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)
    return wide.contiguous().numpy().reshape(-1).view(np.float64)


def norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(x * x)))


def absmax(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max()) if finite.size else 0.0


class Oracle:
    """Looks at an optimizer before and after each step, and keeps what it saw.

    Attributes:
        tensors: Per metric, one row of a number per parameter for each step.
        steps: Per metric, one number (for group quantities a list) for each step.
        scales: ‖p‖·‖Δp‖ of each parameter and step: what the error of `weight_update_dot` is measured by.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.tensors: dict[str, list[list[float]]] = {}
        self.steps: dict[str, list[Any]] = {}
        self.scales: list[list[float]] = []
        self.entry = [norm(flat(p)) for p in self.parameters()]
        self.begin()

    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def begin(self) -> None:
        self._roots: list[float] = []
        self._backwards = 0
        self._before_clip: list[np.ndarray | None] | None = None
        self._clip = (NAN, NAN)

    def backward(self, *roots: torch.Tensor) -> None:
        """A backward call was made from these roots."""
        self._backwards += 1
        self._roots += [float(root.detach().double()) for root in roots]

    def before_clip(self, limit: float = NAN) -> None:
        """All gradients are complete; a clip of the global L2 norm to this limit follows, if one is given."""
        self._before_clip = [flat(p.grad) for p in self.parameters()]
        total = norm(np.concatenate([g for g in self._before_clip if g is not None]))
        self._clip = (limit, min(1.0, limit / (total + 1e-6)) if not math.isnan(limit) else NAN)

    def before_step(self) -> None:
        self._p, self._m = [], []
        for p in self.parameters():
            self._p.append(flat(p))
            self._m.append(flat(self.optimizer.state.get(p, {}).get("exp_avg")))
        self._used = [flat(p.grad) for p in self.parameters()]
        if self._before_clip is None:
            self._before_clip = self._used

    def after_step(self, loss: float = NAN, **known: float) -> None:
        """Work everything out.

        Args:
            loss: What the step's loss must be.
            known: Step metrics that the loop knows better, NaN for one that cannot be told.
        """
        rows: dict[str, list[float]] = {}
        groups = [group for group in self.optimizer.param_groups for _ in group["params"]]
        scales = []
        for i, (p, group) in enumerate(zip(self.parameters(), groups, strict=True)):
            row, scale = self._tensor(i, p, group)
            scales.append(scale)
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        for name, values in rows.items():
            self.tensors.setdefault(name, []).append(values)
        self.scales.append(scales)
        counts = [int(s["step"]) for s in self.optimizer.state.values() if "step" in s]
        step = {
            "loss": loss,
            "loss_sum": math.fsum(self._roots) if self._roots else NAN,
            "backward_count": self._backwards,
            "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
            "weight_decay": [float(group["weight_decay"]) for group in self.optimizer.param_groups],
            "grad_norm": norm(np.concatenate([g for g in self._before_clip or [] if g is not None] or [np.zeros(0)])),
            "grad_norm_used": norm(np.concatenate([g for g in self._used if g is not None] or [np.zeros(0)])),
            "clip_max_norm": self._clip[0],
            "clip_coefficient": self._clip[1],
            "applied_steps": max(counts, default=NAN),
            "weight_norm": norm(np.concatenate(self._p)),
            "update_norm": math.hypot(*rows["update_norm"]),
            "applied_update_norm": math.hypot(*rows["applied_update_norm"]),
        }
        for name, value in (step | known).items():
            self.steps.setdefault(name, []).append(value)
        self.begin()

    def _tensor(self, i: int, parameter: torch.Tensor, group: dict[str, Any]) -> tuple[dict[str, float], float]:
        p, m_before, g = self._p[i], self._m[i], self._used[i]
        after = flat(parameter)
        row = {
            "weight_norm": norm(p), "weight_absmax": absmax(after),
            "weight_nonfinite": float(np.sum(~np.isfinite(after))), "applied_update_norm": norm(after - p),
        }  # fmt: skip
        names = (
            "grad_norm_used", "grad_norm", "grad_absmax", "grad_nonfinite", "grad_zero_fraction", "exp_avg_norm",
            "exp_avg_sq_mean", "exp_avg_sq_min", "exp_avg_sq_max", "rms_ratio", "grad_momentum_cosine", "eps_fraction",
        )  # fmt: skip
        if g is None:
            return {**row, **dict.fromkeys(names, NAN), **IDLE}, 0.0
        state = self.optimizer.state[parameter]
        m, v, t = flat(state["exp_avg"]), flat(state["exp_avg_sq"]), float(state["step"])
        beta1, beta2 = group["betas"]
        lr, eps, n = float(group["lr"]), group["eps"], max(g.size, 1)
        vhat = v / (1 - beta2**t)
        used = flat(state["max_exp_avg_sq"]) / (1 - beta2**t) if group["amsgrad"] else vhat
        decay = lr * group["weight_decay"] if isinstance(self.optimizer, torch.optim.AdamW) else 0.0
        update = -decay * p - lr * (m / (1 - beta1**t)) / (np.sqrt(used) + eps)
        before = (self._before_clip or self._used)[i]
        row |= {
            "grad_norm_used": norm(g), "grad_norm": norm(before), "grad_absmax": absmax(g),
            "grad_nonfinite": float(np.sum(~np.isfinite(g))), "exp_avg_norm": norm(m),
            "update_norm": norm(update), "update_absmax": absmax(update), "weight_update_dot": float(np.sum(p * update)),
        }  # fmt: skip
        if g.size:
            ratio = g**2 / np.maximum(used, eps**2)
            row |= {
                "grad_zero_fraction": np.sum(g == 0) / n, "exp_avg_sq_mean": np.sum(vhat) / n,
                "exp_avg_sq_min": vhat.min(), "exp_avg_sq_max": vhat.max(), "rms_ratio": math.sqrt(np.sum(ratio) / n),
                "eps_fraction": np.sum((v > 0) & (np.sqrt(vhat) < 10 * eps)) / n,
            }  # fmt: skip
        cosine = NAN
        if m_before is not None and norm(g) > 0 and norm(m_before) > 0:
            sign = -1.0 if group["maximize"] else 1.0
            cosine = float(np.sum((g / norm(g)) * (m_before / norm(m_before)))) * sign
        row["grad_momentum_cosine"] = cosine
        return {name: row.get(name, NAN) for name in {**row, **dict.fromkeys(names)}}, norm(p) * norm(update)
