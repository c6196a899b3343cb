"""On a real GPU: nothing waits, nothing changes, and the numbers are those of the same training on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.hooks.monitor import Monitor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "rate on the device": {"capturable": True, "lr": 1e-2},
    "amsgrad": {"amsgrad": True, "maximize": True, "fused": True},
}
PRECISIONS = ("float32", "bfloat16 weights", "float16 autocast and a scaler")


def train(
    device: str, options: dict[str, Any], logdir: Path | None = None, steps: int = 12, precision: str = "float32"
) -> list[torch.Tensor]:
    """The weights and moments that the steps leave."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).to(device)
    kind = torch.bfloat16 if precision == "bfloat16 weights" else torch.float32
    model = model.to(kind)
    rate = torch.tensor(1e-2, device=device) if "lr" in options else 1e-2
    optimizer = torch.optim.AdamW(model.parameters(), **{**options, "lr": rate})
    scaler = torch.amp.GradScaler(device, enabled="scaler" in precision, init_scale=2.0**17, growth_interval=4)
    generator = torch.Generator().manual_seed(1)

    def loop() -> None:
        for _ in range(steps):
            x, y = (torch.randn(8, n, generator=generator).to(device, kind) for n in (16, 4))
            optimizer.zero_grad()
            with torch.autocast(device, torch.float16, enabled="autocast" in precision):
                loss = nn.functional.mse_loss(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()

    if logdir is None:
        loop()
    else:
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            loop()
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return [p.detach().clone() for p in (*model.parameters(), *kept)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_recorder_synchronises(
    implementation: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("cuda", IMPLEMENTATIONS[implementation], precision=precision)  # what CUDA sets up at first use is not ours
    receive = Monitor.receive

    def received(self: Monitor, event: str, *details: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            receive(self, event, *details)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Monitor, "receive", received)
    train("cuda", IMPLEMENTATIONS[implementation], tmp_path, precision=precision)
    run = stabkit.load(tmp_path)
    assert not [event for event in run.events if event["event"] in ("fault", "lost", "unmeasured")]
    without = [event for event in run.events if event["event"] == "fallback"]
    assert not without or find_spec("triton") is None, without
    assert run.steps.tolist() == list(range(1, 13))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_bits_are_the_same(implementation: str, precision: str, tmp_path: Path) -> None:
    options = IMPLEMENTATIONS[implementation]
    bare, watched = (train("cuda", options, logdir, precision=precision) for logdir in (None, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))


@pytest.mark.parametrize("implementation", ["foreach", "fused", "amsgrad"])
def test_the_numbers_are_those_of_the_cpu(implementation: str, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        train(device, IMPLEMENTATIONS[implementation], tmp_path / device)
    near, far = stabkit.load(tmp_path / "cpu"), stabkit.load(tmp_path / "cuda")
    assert far.series("applied_steps").values.tolist() == list(range(1, 13))
    for metric in ("loss", "grad_norm", "grad_norm_used", "weight_norm", "update_norm", "clip_coefficient"):
        np.testing.assert_allclose(far.series(metric).values, near.series(metric).values, rtol=1e-3, err_msg=metric)
    for metric in ("grad_norm", "update_norm", "rms_ratio", "exp_avg_norm", "weight_absmax"):
        np.testing.assert_allclose(far.table(metric).values, near.table(metric).values, rtol=1e-2, err_msg=metric)
