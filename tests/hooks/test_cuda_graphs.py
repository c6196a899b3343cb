"""CUDA graphs: nothing is computed while one is captured, its replays run without Python. No data rather than wrong data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import stabkit
from stabkit.watch import StabkitWarning


def captured_events(logdir: Path) -> list[Any]:
    return [e for e in stabkit.load(logdir).events if e["event"] == "captured"]


def test_what_happens_during_a_capture_is_not_recorded_and_said_once(tmp_path: Path, monkeypatch: Any) -> None:
    """Only the predicate is stood in for: a real capture needs a GPU (below), what must follow from it does not."""
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    losses = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
            for i in range(6):
                capturing[0] = i in (2, 3)
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=capturing[0]):
                    loss = model(torch.randn(3, 4)).float().square().mean()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
                if not capturing[0]:
                    losses.append(float(loss))
    run = stabkit.load(tmp_path / "run")
    assert run.series("loss").values.tolist() == pytest.approx(losses, rel=1e-6)
    assert run.steps.tolist() == [1, 2, 5, 6], "the optimizer has counted those in between"
    assert not [e for e in run.events if e["event"] in ("fault", "autocast")]
    assert len(captured_events(tmp_path / "run")) == 1
    told = [str(w.message) for w in caught if w.category is StabkitWarning]
    assert len(told) == 1 and "CUDA graph" in told[0]


def test_cuda_is_never_initialised_by_us(tmp_path: Path, monkeypatch: Any) -> None:
    def fail() -> bool:
        raise AssertionError("asked about streams of a CUDA that is not in use")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", fail)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    assert stabkit.load(tmp_path / "run").steps.tolist() == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a real capture needs a GPU")
def test_a_whole_step_captured_and_replayed(tmp_path: Path) -> None:
    def train(logdir: Path | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
        x = torch.randn(3, 4, device="cuda")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()

        def loop() -> None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()

        if logdir is None:
            loop()
        else:
            with pytest.warns(StabkitWarning), stabkit.watch(model, optimizer, logdir, tensorboard=False):
                loop()
        return [p.detach().cpu() for p in model.parameters()]

    for a, b in zip(train(None), train(tmp_path / "run"), strict=True):
        assert torch.equal(a, b)
    assert stabkit.load(tmp_path / "run").steps.tolist() == [1, 2, 3]
    assert len(captured_events(tmp_path / "run")) == 1
