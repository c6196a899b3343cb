"""Gradients too small for float16: what is lost in real trainings, and zeros that mean nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from analyzer_runs import flat, make_run
from torch import nn

import stabkit
from stabkit.analyzers import analyze
from stabkit.finding import Finding, Severity, Status

FLOAT16 = ({"event": "autocast", "dtype": "float16", "step": 0},)


def trained(logdir: Path, scale: float | None, dtype: torch.dtype = torch.float16, loss_factor: float = 1.0) -> stabkit.RunLog:
    """A regression on sparse inputs with units that are often dead: a tenth to a fifth of every gradient is 0 by design."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=10**6, enabled=scale is not None)
    with warnings.catch_warnings(), stabkit.watch(model, optimizer, logdir, tensorboard=False):
        warnings.simplefilter("ignore")  # of shapes that broadcast
        for _ in range(40):
            x = torch.randn(64, 64) * (torch.rand(64, 64) < 0.1)
            with torch.autocast("cpu", dtype):
                loss = (model(x).float() - x[:, :3].tanh().sum(1, keepdim=True)).square().mean() * loss_factor
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
    return stabkit.load(logdir)


def found(run: stabkit.RunLog) -> list[Finding]:
    return [f for f in flat(analyze(run)) if f.rule == "SK305"]


@pytest.mark.parametrize("scale", [65536.0, 64.0, 1.0])
def test_a_scale_that_is_high_enough_is_clear(scale: float, tmp_path: Path) -> None:
    assert analyze(trained(tmp_path, scale)).outcome("SK305").status is Status.CLEAR


def test_a_scale_far_too_low_is_told_with_the_matrix_that_lost_most(tmp_path: Path) -> None:
    run = trained(tmp_path, 2.0**-17)
    (finding,) = found(run)
    assert finding.severity is Severity.WARNING and finding.remedy == {"bfloat16": 1.0}
    zeros = run.table("grad_zero_fraction")
    matrices = [t.name for t in run.tensors if t.role == "matrix"]
    at = (zeros.steps > finding.first_step - 20) & (zeros.steps <= finding.first_step)
    lost = {name: float(np.median(zeros.series(name).values[at])) for name in matrices}
    assert finding.tensors[0] == max(lost, key=lambda name: lost[name])
    assert f"{max(lost.values()):.0%} of the gradient of {finding.tensors[0]} are 0" in finding.message
    assert "at loss scale 7.62939e-06" in finding.message


def test_a_small_loss_without_a_scaler_is_told_and_given_a_scale(tmp_path: Path) -> None:
    (finding,) = found(trained(tmp_path, None, loss_factor=2.0**-17))
    assert "without a loss scale" in finding.message
    assert "use a GradScaler: it would take a scale of about " in finding.advice


def test_bfloat16_has_no_occasion(tmp_path: Path) -> None:
    outcome = analyze(trained(tmp_path, None, torch.bfloat16, 2.0**-17)).outcome("SK305")
    assert (outcome.status, outcome.occasion) == (Status.NOT_APPLICABLE, False)


@pytest.mark.parametrize(("size", "zeros", "told"), [(7.9, 0.7, True), (8.1, 0.7, False), (7.9, 0.68, False)])
def test_zeros_count_only_beside_the_smallest_numbers(size: float, zeros: float, told: bool) -> None:
    numel = 10_000
    tensors = (stabkit.runlog.TensorInfo("w", (100, 100)),)
    squares = (size * 2**-24 / 64) ** 2 * numel * (1 - zeros)
    run = make_run(steps=np.arange(1, 31), tensors=tensors, loss_scale=np.full(30, 64.0), grad_used_sumsq=squares,
                   grad_zeros=zeros * numel, events=FLOAT16)  # fmt: skip
    assert bool(found(run)) is told


def test_the_verdict_is_causal(tmp_path: Path) -> None:
    run = trained(tmp_path, 2.0**-17)
    (finding,) = found(run)
    assert not found(run.until(finding.first_step - 1))
    assert [f.first_step for f in found(run.until(finding.first_step))] == [finding.first_step]
