"""Runs made of arrays, and the findings of a diagnosis in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stabkit.finding import Diagnosis, Finding
from stabkit.runlog import RunLog, Stream, TensorInfo

TENSORS = (
    TensorInfo("embed", (16, 4), role="embedding"),
    TensorInfo("a", (4, 4)),
    TensorInfo("b", (4, 4)),
    TensorInfo("c", (4, 4)),
    TensorInfo("bias", (4,), role="bias"),
)


def make_run(loss: Any = None, *, steps: Any = None, lr: Any = 1e-3, beta2: Any = 0.99, every: int = 1, **more: Any) -> RunLog:
    """A run of five tensors with everything the rules ask for, healthy where nothing else is said.

    Args:
        loss: [n]; 3 throughout where left out.
        steps: [n]; 1 to n where left out.
        lr: [n] or a number.
        beta2: [n] or a number.
        every: How often tensors were measured.
        more: Other step metrics [n], tensor columns [n, 5] or [n, 1], or attributes of `RunLog`.
    """
    n = len(loss) if loss is not None else len(steps) if steps is not None else 200
    loss = np.full(n, 3.0) if loss is None else np.asarray(loss, dtype=float)
    index = np.arange(1, n + 1) if steps is None else np.asarray(steps, dtype=np.int64)
    about = {name: more.pop(name) for name in ("facts", "events", "scalars", "notes") if name in more}
    tensors = more.pop("tensors", TENSORS)
    numel = np.array([t.numel for t in tensors], dtype=float)
    columns: dict[str, Any] = {
        "weight_sumsq": 0.05**2 * numel, "update_sumsq": (0.01 * 0.05) ** 2 * numel, "weight_absmax": 0.1,
        "weight_nonfinite": 0.0, "grad_nonfinite": 0.0, "grad_used_sumsq": 1.0, "grad_sumsq": 1.0, "rms_sum": numel,
        "grad_zeros": 0.0,
    }  # fmt: skip
    columns |= {name: more.pop(name) for name in list(more) if name in columns}
    shape = (n, len(tensors))
    stored = {name: np.broadcast_to(np.asarray(v, dtype=float), shape)[index % every == 0] for name, v in columns.items()}
    values = {"loss": loss, "loss_reduction": np.ones(n), "grad_norm": np.ones(n), "grad_norm_used": np.ones(n)}
    values |= {name: np.asarray(v, dtype=float) for name, v in more.items()}
    given = {"lr": np.asarray(lr, dtype=float), "beta2": np.asarray(beta2, dtype=float)}
    rates = {name: np.broadcast_to(values, n)[:, None] for name, values in given.items()}
    stream = Stream(index, values, rates, tensors, index[index % every == 0], stored)
    return RunLog(source="stabkit", streams=(stream,), **about)


def flat(diagnosis: Diagnosis) -> list[Finding]:
    """All findings, those inside others too, by step."""
    tops = [finding for outcome in diagnosis.outcomes for finding in outcome.findings]
    return sorted((bare for f in tops for bare in unfold(f)), key=lambda f: (f.first_step, f.rule))


def unfold(finding: Finding) -> list[Finding]:
    """A finding and what it holds, each without consequences."""
    return [replace(finding, consequences=()), *(f for inner in finding.consequences for f in unfold(inner))]


def told(diagnosis: Diagnosis) -> list[tuple[str, int]]:
    """(rule, first step) of every finding."""
    return [(f.rule, f.first_step) for f in flat(diagnosis)]
