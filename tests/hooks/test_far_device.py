"""The way from a device, walked on the CPU: every tensor is out of reach, and what is sent for takes three polls to come.

That is no GPU, and proves nothing about streams or events: see test_cuda.py. It proves that a record waits and the training
does not, that nothing is read on the way, and that in the end the log is the same.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
from stabkit.hooks import counting, gradients, optimizer, ring, transfer
from stabkit.hooks.statistics import cpu, device, reference
from stabkit.runlog import RunWriter
from stabkit.watch import StabkitWarning
from tests.cases.wiring.loop import IMPLEMENTATIONS, Loop

POLLS = 3


class SlowFlight:
    """Stands in for a copy into pinned memory and its event."""

    in_the_air = 0
    most = 0

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._numbers = torch.cat([tensor.to(torch.float64).reshape(-1) for tensor in tensors]).numpy()
        self._polls = 0
        SlowFlight.in_the_air += 1
        SlowFlight.most = max(SlowFlight.most, SlowFlight.in_the_air)

    def arrived(self) -> bool:
        self._polls += 1
        return self._polls > POLLS

    def land(self) -> Any:
        SlowFlight.in_the_air -= 1
        return self._numbers


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (transfer, gradients, counting, optimizer, reference):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    monkeypatch.setattr(ring, "carries", lambda tensor: True)
    monkeypatch.setattr(ring, "depart", SlowFlight)
    monkeypatch.setattr(cpu, "native", None)
    monkeypatch.setattr(device, "on_device", lambda tensor: True)
    monkeypatch.setattr(device, "_given_up", "no Triton in this test")
    SlowFlight.in_the_air = SlowFlight.most = 0
    yield


LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"micro_batches": 3},
    "zeroed in place": {"to_none": False},
    "never zeroed": {"zero": ""},
    "scaled": {"scaler": True},
    "scaled, skipping": {"scaler": True, "overflows": (3, 4)},
    "clipped with the scale on": {"scaler": True, "unscale": False},
}
SEEN_ONLY_HERE = {"time", "update_ratio"}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOOPS)
def test_the_log_is_the_same(name: str, implementation: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    near = Loop(implementation=implementation, **LOOPS[name]).run(tmp_path / "near")
    request.getfixturevalue("far")
    run = Loop(implementation=implementation, **LOOPS[name]).run(tmp_path / "far")
    assert not [event for event in run.events if event["event"] in ("fault", "lost")]
    assert SlowFlight.most > 1 and SlowFlight.in_the_air == 0, "records waited, and none was left behind"
    assert run.steps.tolist() == near.steps.tolist()
    assert run.stream.step_values.keys() == near.stream.step_values.keys()
    for metric, values in near.stream.step_values.items():
        if metric not in SEEN_ONLY_HERE:
            np.testing.assert_allclose(run.stream.step_values[metric], values, rtol=1e-5, atol=1e-12, err_msg=metric)
    assert set(run.stream.columns) == set(near.stream.columns)
    for column in near.stream.columns:
        np.testing.assert_allclose(
            run.stream.columns[column], near.stream.columns[column], rtol=1e-4, atol=1e-9, err_msg=column
        )


def test_a_rate_on_the_device_is_read_there(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def train(logdir: Path) -> stabkit.RunLog:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        stepping = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2), weight_decay=0.5, fused=True)
        with stabkit.watch(model, stepping, logdir, tensorboard=False):
            for _ in range(6):
                model(torch.randn(4, 8)).square().mean().backward()
                stepping.step()
                stepping.zero_grad()
        return stabkit.load(logdir)

    near = train(tmp_path / "near")
    request.getfixturevalue("far")
    far = train(tmp_path / "far")
    assert not [event for event in far.events if event["event"] in ("fault", "update-measured")]
    for column in ("update_sumsq", "weight_update_dot"):
        np.testing.assert_allclose(far.stream.columns[column], near.stream.columns[column], rtol=1e-4, err_msg=column)


def test_the_bits_of_the_training_are_the_same(tmp_path: Path, far: None) -> None:
    def train(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        stepping = torch.optim.AdamW(model.parameters(), fused=True)

        def steps() -> None:
            for _ in range(6):
                model(torch.randn(4, 8)).square().mean().backward()
                stepping.step()
                stepping.zero_grad()

        if watched:
            with stabkit.watch(model, stepping, tmp_path, tensorboard=False):
                steps()
        else:
            steps()
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_where_there_is_no_room_the_record_is_lost_and_counted(
    tmp_path: Path, far: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    departures = []

    def depart(tensors: list[torch.Tensor]) -> SlowFlight | None:
        departures.append(len(tensors))
        return None if len(departures) in (4, 5) else SlowFlight(tensors)

    monkeypatch.setattr(ring, "depart", depart)
    run = Loop().run(tmp_path)  # the first departure is that of the weights at entry
    assert run.steps.tolist() == [1, 2, 5, 6, 7, 8]
    assert [event["steps"] for event in run.events if event["event"] == "lost"] == [2]
    assert any("2 steps after step 2 are not in the log" in note for note in run.notes)


def test_a_disk_that_is_full_at_the_end_keeps_nothing_alive(tmp_path: Path, far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(8, 4)
    stepping = torch.optim.AdamW(model.parameters())
    gone = weakref.ref(stepping)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabkitWarning)
        with stabkit.watch(model, stepping, tmp_path, tensorboard=False):
            for _ in range(4):
                model(torch.randn(4, 8)).square().mean().backward()
                stepping.step()
                stepping.zero_grad()
            monkeypatch.setattr(RunWriter, "write", _full)
    monkeypatch.undo()
    del stepping
    gc.collect()
    assert gone() is None
    assert [event["where"] for event in stabkit.load(tmp_path).events if event["event"] == "fault"] == ["detach"]


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")
