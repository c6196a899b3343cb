"""A rule run live finds the same at the same step as the whole log does afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from analyzer_runs import TENSORS, flat, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.analyzers import analyze
from stabkit.finding import Severity
from stabkit.runlog import RunLog
from tests.cases import load_case
from tests.cases.recipes import CASES

Told = dict[tuple[str, int, str | None], Severity]


def told(run: RunLog, until: int | None = None) -> Told:
    """What was found, with its severity."""
    found = flat(analyze(run))
    keys = [(f.rule, f.first_step, f.tensors[0] if f.tensors else None) for f in found]
    assert len(set(keys)) == len(keys)
    return {key: f.severity for key, f in zip(keys, found, strict=True) if until is None or f.first_step <= until}


def assert_causal(run: RunLog, prefixes: list[int]) -> None:
    whole = told(run)
    for step in prefixes:
        live, later = told(run.until(step)), {key: s for key, s in whole.items() if key[1] <= step}
        assert live.keys() == later.keys(), f"as of step {step}"
        assert all(live[key] <= later[key] for key in live), "a severity may only rise"


@pytest.mark.parametrize("name", CASES)
def test_recorded_cases(name: str) -> None:
    run = load_case(name)
    firsts = [key[1] for key in told(run)]
    chosen = {int(s) for s in np.linspace(1, run.steps[-1], 25)} | {s + d for s in firsts for d in (-1, 0, 1)}
    assert_causal(run, sorted(step for step in chosen if step >= 1))


def synthetic(seed: int, start: int, every: int, gaps: bool) -> RunLog:
    """A run in which much goes wrong: everything is drawn from the seed."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(30, 320)), len(TENSORS)
    steps = start + np.cumsum(rng.integers(1, 4, n) if gaps else np.ones(n, dtype=int)) - 1
    noise = rng.choice([0.01, 0.05, 0.2])
    loss = (1 + 4 * np.exp(-np.arange(n) / rng.integers(5, 80))) * np.exp(noise * rng.standard_normal(n))
    norm, used = np.exp(0.2 * rng.standard_normal((2, n)))
    ratio, rms = 0.01 * np.exp(rng.standard_normal((n, k))), np.exp(0.2 * rng.standard_normal((n, k)))
    weights, bad = np.full((n, k), 0.05), np.zeros((2, n, k))
    for at in rng.integers(0, n, 4):  # faults of one to five steps
        for series, size in ((loss, 3), (norm, 20), (used, 20), (ratio, 200), (rms, 8)):
            if rng.random() < 0.4:
                series[at : at + rng.integers(1, 6)] *= size
    late = int(rng.integers(0, n))
    if rng.random() < 0.3:
        loss[late:] += rng.choice([1.0, 5.0])
    if rng.random() < 0.2:
        loss = loss - rng.choice([1.0, 2.0, 10.0])
    if rng.random() < 0.3:
        weights[late:, 1] *= np.exp(0.05 * np.arange(n - late))
    if rng.random() < 0.3:
        loss[late], bad[0, late, 2], bad[1, min(late + 1, n - 1), 2] = rng.choice([np.nan, np.inf, loss[late]]), 1, 1
    lr = rng.choice([1e-3, 1e-3, 0.0, np.nan]) * np.minimum(1, (np.arange(n) + 1) / rng.choice([1, 20, 150]))
    if rng.random() < 0.3:
        lr[rng.random(n) < 0.1] = rng.choice([0.0, np.nan, 1.0])
    norm[rng.random(n) < rng.choice([0, 0, 0.1, 0.9, 1])] = np.nan
    clip = np.where(rng.random(n) < rng.choice([0, 0.5, 1]), 0.5, np.nan)
    beta2 = np.where(np.arange(n) < late, rng.choice([0.8, 0.95, 0.99, np.nan]), rng.choice([0.8, 0.95, 0.99]))
    numel = np.array([t.numel for t in TENSORS])
    scale = 2.0 ** np.clip(16 + np.cumsum(rng.choice([-1, 0, 1], n, p=[0.15, 0.75, 0.1])), -2, 40)
    scale[: int(rng.integers(0, n)) * int(rng.integers(0, 2))] = rng.choice([np.nan, 65536.0])
    zeros = np.where((np.arange(n) > late)[:, None] & (rng.random(k) < 0.5), 0.9, 0.1) * numel
    events = ({"event": "autocast", "dtype": "float16", "step": int(steps[0])},) if rng.random() < 0.5 else ()
    return make_run(
        loss, steps=steps, lr=lr, beta2=beta2, every=every, grad_norm=norm, grad_norm_used=used, clip_coefficient=clip,
        clip_max_norm=clip, weight_sumsq=weights**2 * numel, weight_absmax=2 * weights, rms_sum=rms**2 * numel,
        update_sumsq=(ratio * weights) ** 2 * numel, grad_nonfinite=bad[0], weight_nonfinite=bad[1],
        loss_scale=scale, grad_zeros=zeros, grad_used_sumsq=10.0 ** rng.uniform(-28, 0), events=events,
        grad_sumsq=np.where(rng.random((n, k)) < 0.1, np.nan, rms**2), facts={"total_steps": 500} if rng.random() < 0.5 else {},
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 1, 500]), st.sampled_from([1, 1, 5]), st.booleans())
def test_synthetic_runs(seed: int, start: int, every: int, gaps: bool) -> None:
    run = synthetic(seed, start, every, gaps)
    firsts = [key[1] for key in told(run)]
    around = [s + d for s in firsts[:6] for d in (-1, 0)]
    assert_causal(run, sorted({*np.linspace(run.steps[0], run.steps[-1], 10).astype(int).tolist(), *around}))
