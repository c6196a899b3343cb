"""A long run is judged in seconds."""

from __future__ import annotations

import time

import numpy as np
from analyzer_runs import make_run

from stabkit.analyzers import analyze
from stabkit.runlog import TensorInfo


def test_20000_steps_of_52_tensors() -> None:
    rng = np.random.default_rng(0)
    n, k = 20_000, 52
    numel = 16.0
    tensors = tuple(TensorInfo(f"layer{i}", (4, 4)) for i in range(k))
    loss = 3 * np.exp(0.03 * rng.standard_normal(n))
    loss[rng.integers(0, n, 100)] *= 3
    norm = np.exp(0.2 * rng.standard_normal(n))
    weights = 0.05 * np.exp(np.linspace(0, 0.1, n)[:, None] + 0.001 * rng.standard_normal((n, k)))
    rms = np.exp(0.3 * rng.standard_normal((n, k)))
    run = make_run(
        loss, tensors=tensors, grad_norm=norm, grad_norm_used=norm, weight_sumsq=weights**2 * numel, weight_absmax=weights,
        rms_sum=rms**2 * numel, update_sumsq=(0.01 * weights) ** 2 * numel, grad_sumsq=rms**2, grad_used_sumsq=rms**2,
    )  # fmt: skip
    began = time.process_time()
    analyze(run)
    assert time.process_time() - began < 5, "was 1 to 2 s when this was written"
