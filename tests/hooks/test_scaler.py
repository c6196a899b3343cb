"""GradScaler, every case, on the CPU and where there is one on a GPU: fused or not, unscaled or not, clipped or not, overflow.

The oracle divides by the scale itself, right after backward, and follows clipping by hand; it knows nothing of stabkit. fused
AdamW with a CPU GradScaler takes the same path as on a GPU: the kernel unscales, and skips inside the step.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp import GradScaler

import stabkit

IMPLEMENTATIONS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
OVERFLOW_AT = 4
STEPS = 8


@dataclass
class Truth:
    """What really happened, by step and tensor."""

    loss: list[float] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    grad: list[list[float]] = field(default_factory=list)
    used: list[list[float]] = field(default_factory=list)
    nonfinite: list[list[int]] = field(default_factory=list)
    moved: list[list[float]] = field(default_factory=list)
    cosine: list[list[float]] = field(default_factory=list)
    rms: list[list[float]] = field(default_factory=list)


def norm(t: torch.Tensor) -> float:
    return float(t.double().square().sum().sqrt())


def rms(g: torch.Tensor, v: torch.Tensor, count: float) -> float:
    corrected = v.double() / (1 - 0.999**count)
    return float((g.square() / corrected.clamp(min=1e-16)).mean().sqrt())


def train(
    logdir: Path | None, implementation: str, unscale: bool, clip: bool, overflow: bool, scaler: Any = None, device: str = "cpu"
) -> tuple[Truth, dict[str, torch.Tensor], Any]:
    """Eight steps with a GradScaler; the truth, the weights, and what else must not change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, **IMPLEMENTATIONS[implementation])
    scaler = scaler or GradScaler(device, init_scale=2.0**16, growth_interval=3)
    truth = Truth()
    generator = torch.Generator().manual_seed(1)

    def loop() -> None:
        for step in range(1, STEPS + 1):
            x, y = torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            if overflow and step == OVERFLOW_AT:
                loss = loss * 1e36  # finite, and so is its gradient; times the scale it is not
            optimizer.zero_grad()
            scale = scaler.get_scale()
            scaler.scale(loss).backward()
            true = [p.grad.double() / scale for p in parameters]
            coefficient = 1.0
            if unscale:
                scaler.unscale_(optimizer)
            if clip:
                total = nn.utils.clip_grad_norm_(parameters, 0.5)
                coefficient = min(1.0, 0.5 / (float(total) + 1e-6))
            before = [p.detach().clone() for p in parameters]
            momenta = [optimizer.state[p]["exp_avg"].double().clone() if p in optimizer.state else None for p in parameters]
            scaler.step(optimizer)
            scaler.update()
            states = [optimizer.state.get(p, {}) for p in parameters]
            skipped = int(all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True)))
            used = [g * coefficient for g in true]
            truth.loss.append(float(loss))
            truth.scale.append(scale)
            truth.skipped.append(skipped)
            truth.applied.append(int(states[0].get("step", 0)))
            truth.grad.append([norm(g) for g in true])
            truth.used.append([norm(g) for g in used])
            truth.nonfinite.append([int((~torch.isfinite(g)).sum()) for g in true])
            truth.moved.append([norm(p.detach().double() - b.double()) for p, b in zip(parameters, before, strict=True)])
            truth.cosine.append([
                float((g * m).sum() / (norm(g) * norm(m))) if m is not None and norm(m) > 0 else np.nan
                for g, m in zip(used, momenta, strict=True)
            ])  # fmt: skip
            truth.rms.append([
                rms(g, s["exp_avg_sq"], float(s["step"])) if s and not skipped else np.nan
                for g, s in zip(used, states, strict=True)
            ])  # fmt: skip

    if logdir is None:
        loop()
    else:
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            loop()
    result = {name: p.detach().clone() for name, p in model.named_parameters()}
    result |= {f"grad/{name}": p.grad.clone() for name, p in model.named_parameters()}
    result |= {f"m/{i}": optimizer.state[p]["exp_avg"].clone() for i, p in enumerate(parameters)}
    return truth, result, (scaler.state_dict(), torch.get_rng_state())


CASES = [
    pytest.param(i, u, c, o, id=f"{i}-{'unscale' if u else 'plain'}-{'clip' if c else 'free'}-{'overflow' if o else 'fine'}")
    for i in IMPLEMENTATIONS
    for u in (False, True)
    for c in (False, True)
    for o in (False, True)
]


@pytest.mark.parametrize(("implementation", "unscale", "clip", "overflow"), CASES)
def test_what_is_recorded_is_true(tmp_path: Path, implementation: str, unscale: bool, clip: bool, overflow: bool) -> None:
    assert_true(tmp_path, implementation, unscale, clip, overflow, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("implementation", "unscale", "clip", "overflow"), CASES)
def test_what_is_recorded_on_a_gpu_is_true(
    tmp_path: Path, implementation: str, unscale: bool, clip: bool, overflow: bool
) -> None:
    assert_true(tmp_path, implementation, unscale, clip, overflow, "cuda")


def assert_true(tmp_path: Path, implementation: str, unscale: bool, clip: bool, overflow: bool, device: str) -> None:
    """One row of the table."""
    truth, watched, others = train(tmp_path / "run", implementation, unscale, clip, overflow, device=device)
    _, bare, bare_others = train(None, implementation, unscale, clip, overflow, device=device)
    for name in bare:
        assert torch.equal(watched[name].nan_to_num(7.0), bare[name].nan_to_num(7.0)), name
    assert others[0] == bare_others[0] and torch.equal(others[1], bare_others[1])

    run = stabkit.load(tmp_path / "run")
    assert not [e for e in run.events if e["event"] == "fault"]
    assert run.steps.tolist() == list(range(1, STEPS + 1))
    assert truth.skipped == [int(overflow and s == OVERFLOW_AT) for s in range(1, STEPS + 1)], "the case is what it says"
    assert run.series("skipped").values.tolist() == truth.skipped
    assert run.series("applied_steps").values.tolist() == truth.applied
    assert run.series("loss_scale").values.tolist() == truth.scale
    np.testing.assert_allclose(run.series("loss").values, truth.loss, rtol=1e-6)

    finite = np.array([not any(counts) for counts in truth.nonfinite])
    nonfinite = run.table("grad_nonfinite").values[1:]
    assert (nonfinite[~finite] > 0).any() == overflow
    assert not nonfinite[finite].any()

    def check(metric: str, expected: list[list[float]], tolerance: float = 1e-4, absolute: float = 0.0) -> None:
        values = run.table(metric).values[1:]  # the first row is step 0
        np.testing.assert_allclose(values[finite], np.array(expected)[finite], rtol=tolerance, atol=absolute, err_msg=metric)

    check("grad_norm_used", truth.used)
    check("grad_norm", truth.grad)
    check("rms_ratio", truth.rms)
    check("grad_momentum_cosine", truth.cosine, 0.0, 1e-4)
    check("update_norm", truth.moved, 1e-3)
    assert run.table("update_norm").values[1:][~finite].tolist() == [[0.0] * 4] * int((~finite).sum())
    for metric in ("rms_ratio", "exp_avg_norm", "exp_avg_sq_mean", "grad_momentum_cosine"):
        assert np.isnan(run.table(metric).values[1:][~finite]).all(), f"{metric} of a step that was not taken"
    total = np.sqrt(np.square(truth.grad).sum(axis=1))
    np.testing.assert_allclose(run.series("grad_norm").values[finite], total[finite], rtol=1e-4)
    total = np.sqrt(np.square(truth.used).sum(axis=1))
    np.testing.assert_allclose(run.series("grad_norm_used").values[finite], total[finite], rtol=1e-4)


def test_a_disabled_scaler_is_as_none(tmp_path: Path) -> None:
    truth, _, _ = train(tmp_path / "run", "fused", False, True, False, scaler=GradScaler("cpu", enabled=False))
    run = stabkit.load(tmp_path / "run")
    assert not run.has("loss_scale")
    np.testing.assert_allclose(run.series("loss").values, truth.loss, rtol=1e-6)
    np.testing.assert_allclose(run.table("grad_norm").values[1:], truth.grad, rtol=1e-4)


def test_the_legacy_name_is_seen_too(tmp_path: Path) -> None:
    class Legacy(GradScaler):
        """As torch.cuda.amp.GradScaler is: a subclass that overrides the constructor only."""

        def __init__(self) -> None:
            super().__init__("cpu", init_scale=2.0**16, growth_interval=3)

    truth, _, _ = train(tmp_path / "run", "fused", False, False, True, scaler=Legacy())
    run = stabkit.load(tmp_path / "run")
    assert run.series("skipped").values.tolist() == truth.skipped
    assert run.series("loss_scale").values.tolist() == truth.scale


def test_a_scaler_is_pickled_and_copied_as_ever(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = GradScaler("cpu")
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 3)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        twin = pickle.loads(pickle.dumps(scaler))
        assert twin.state_dict() == copy.deepcopy(scaler).state_dict() == scaler.state_dict()
    assert "stabkit" not in GradScaler.step.__module__


def test_accumulation_keeps_the_unscaled_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaler = GradScaler("cpu", init_scale=1024.0)
    losses = []
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(3):
            optimizer.zero_grad()
            parts = [model(torch.randn(2, 3)).square().mean() / 2 for _ in range(2)]
            for part in parts:
                scaler.scale(part).backward()
            losses.append(sum(float(part) for part in parts))
            scaler.step(optimizer)
            scaler.update()
    run = stabkit.load(tmp_path / "run")
    np.testing.assert_allclose(run.series("loss").values, losses, rtol=1e-6)
    assert run.series("backward_count").values.tolist() == [2, 2, 2]
    assert run.series("loss_scale").values.tolist() == [1024.0] * 3


def test_two_optimizers_share_a_scaler(tmp_path: Path) -> None:
    """Only the one whose gradients overflow is skipped."""
    torch.manual_seed(0)
    models = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
    optimizers = [torch.optim.AdamW(models[k].parameters(), foreach=True) for k in "ab"]
    scaler = GradScaler("cpu", init_scale=1024.0)
    with stabkit.watch(models, optimizers, tmp_path / "run", tensorboard=False):
        for step in range(1, 5):
            for optimizer in optimizers:
                optimizer.zero_grad()
            huge = 1e37 if step == 3 else 1.0
            scaler.scale(models["a"](torch.randn(2, 3)).square().mean() * huge).backward()
            scaler.scale(models["b"](torch.randn(2, 3)).square().mean()).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
    run = stabkit.load(tmp_path / "run")
    assert run.series("skipped").values.tolist() == [0, 0, 1, 0]
    assert run.optimizer(1).series("skipped").values.tolist() == [0, 0, 0, 0]
    assert run.series("applied_steps").values.tolist() == [1, 2, 2, 3]
