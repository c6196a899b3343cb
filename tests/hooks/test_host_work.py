"""What a watched step costs the host, held without a clock: calls, operations, bytes, objects."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stabkit
from stabkit.hooks import counting, quick, signatures
from stabkit.hooks.statistics import cpu, native, table
from stabkit.runlog.format import HEADER_BYTES, step_dtype, tensor_dtype

SETTLED = 22
"""Steps after which nothing is looked for any more: whether the optimizer is an Adam, which parameters no gradient reaches."""

compiled = pytest.mark.skipif(native.finder is None, reason="the extension was not built, or torch is older than 2.10")


class Training:
    """Many tiny tensors under fused AdamW, clipped."""

    def __init__(self, tensors: int) -> None:
        torch.manual_seed(0)
        self.model = nn.ParameterList(nn.Parameter(torch.randn(8)) for _ in range(tensors))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def step(self) -> None:
        self.optimizer.zero_grad()
        torch.cat([*self.model]).square().mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
        self.optimizer.step()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(training: Training) -> int:
    with Operations() as seen:
        training.step()
    return seen.count


def calls(training: Training) -> int:
    """Calls that Python makes within stabkit, of functions in Python and in C."""
    count = 0

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        at = frame.f_code.co_filename
        count += event in ("call", "c_call") and ("/hooks/" in at or "/stabkit/" in at) and "/tests/" not in at

    sys.setprofile(look)
    try:
        training.step()
    finally:
        sys.setprofile(None)
    return count


def added(measure: Callable[[Training], int], tensors: int, folder: Path) -> int:
    """What watching adds to a step of so many tensors."""
    bare, watched = Training(tensors), Training(tensors)
    bare.steps(SETTLED)
    with stabkit.watch(watched.model, watched.optimizer, folder / str(tensors), tensorboard=False):
        watched.steps(SETTLED)
        count = measure(watched)
    return count - measure(bare)


@compiled
def test_the_operations_of_a_step_do_not_grow_with_its_tensors(tmp_path: Path) -> None:
    few, many = added(operations, 10, tmp_path), added(operations, 300, tmp_path)
    assert few == many <= 25


@compiled
def test_nor_do_its_calls_of_functions(tmp_path: Path) -> None:
    few, many = added(calls, 10, tmp_path), added(calls, 300, tmp_path)
    assert many <= few + 30 < 1500


def test_a_step_writes_its_two_records_and_nothing_else(tmp_path: Path) -> None:
    for tensors in (10, 300):
        training, folder = Training(tensors), tmp_path / str(tensors)
        with stabkit.watch(training.model, training.optimizer, folder, tensorboard=False):
            training.steps(SETTLED)
            before = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            training.steps(10)
            after = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert after - before == 10 * (step_dtype(1).itemsize + tensor_dtype(tensors).itemsize)
        assert after > HEADER_BYTES


def test_nothing_is_left_behind_by_a_step(tmp_path: Path) -> None:
    training = Training(20)

    def alive() -> tuple[int, int]:
        gc.collect()
        objects = gc.get_objects()
        return len(objects), sum(issubclass(type(o), torch.Tensor) for o in objects)

    with stabkit.watch(training.model, training.optimizer, tmp_path / "run"):
        training.steps(SETTLED + 3)
        objects, tensors = alive()
        training.steps(40)
        more_objects, more_tensors = alive()
    assert more_tensors <= tensors  # fewer where what an earlier test left is let go
    assert more_objects <= objects + 10


@compiled
@pytest.mark.parametrize("wanted", ["all", "one without a gradient", "two groups", "one made anew by the user"])
def test_the_short_way_finds_what_the_long_way_finds(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str) -> stabkit.RunLog:
        training = Training(12)
        first, *others = training.model.parameters()
        if wanted == "two groups":
            training.optimizer = torch.optim.AdamW(
                [{"params": [first], "lr": 1e-2, "weight_decay": 0.0}, {"params": others}], lr=1e-3, fused=True, amsgrad=True
            )
        if wanted == "one without a gradient":
            first.requires_grad_(False)
        with stabkit.watch(training.model, training.optimizer, tmp_path / name, tensorboard=False):
            training.steps(5)
            if wanted == "one made anew by the user":
                del training.optimizer.state[first]
            training.steps(4)
        return stabkit.load(tmp_path / name)

    quickly = run("quick")
    for module in (signatures, counting, table):
        monkeypatch.setattr(module, "finder", None)
    slowly = run("slow")
    assert not [event for event in (*quickly.events, *slowly.events) if event["event"] == "fault"]
    here, there = quickly.streams[0], slowly.streams[0]
    worked_back = {"weight_sumsq", "momentum_sumsq", "momentum_dot", "weight_norm"}  # see hooks.once
    for name in here.columns:
        if name == "momentum_dot":
            size = np.sqrt(there.columns["grad_used_sumsq"] * there.columns["momentum_sumsq"])
            np.testing.assert_allclose(here.columns[name] / size, there.columns[name] / size, atol=1e-6)
        elif name in worked_back:
            np.testing.assert_allclose(here.columns[name], there.columns[name], rtol=1e-6, err_msg=name)
        else:
            assert np.array_equal(here.columns[name], there.columns[name], equal_nan=True), name
    for name in set(here.step_values) - {"time"}:
        if name in worked_back:
            np.testing.assert_allclose(here.step_values[name], there.step_values[name], rtol=1e-6)
        else:
            assert np.array_equal(here.step_values[name], there.step_values[name], equal_nan=True), name


@compiled
def test_most_steps_go_the_short_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    finish = quick.Quick.finish
    monkeypatch.setattr(quick.Quick, "finish", lambda self, *a: (made.append(1), finish(self, *a))[1])
    training = Training(5)
    with stabkit.watch(training.model, training.optimizer, tmp_path / "run"):
        training.steps(10)
    assert len(made) == 8  # two are trials


@compiled
def test_what_c_cannot_read_goes_the_long_way(tmp_path: Path) -> None:
    """A bfloat16 tensor among others, one whose dimensions are not in order, a gradient that is a conjugate's negative part."""
    weights = [torch.randn(8), torch.randn(8, dtype=torch.bfloat16), torch.randn(4, 6).t(), torch.randn(8)]
    parameters = [nn.Parameter(w) for w in weights]
    for kept in ([0], [0, 1], [0, 2], [0, 3]):
        optimizer = torch.optim.AdamW([parameters[i] for i in kept], lr=1e-3)
        finder, rows = native.finder, table.Table([parameters[i] for i in kept], optimizer.state)
        assert finder is not None and cpu.native is not None
        for i in kept:
            parameters[i].grad = torch.randn_like(parameters[i])
        if 3 in kept:
            parameters[3].grad = torch.randn(8, dtype=torch.complex64).conj().imag
        assert rows.look(moments=3) == (kept == [0])
