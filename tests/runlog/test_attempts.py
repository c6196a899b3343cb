"""Runs that are repeated, resumed and re-initialised in one directory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runlog_records import layout_of, record
from runlog_training import make, step, train

import stabkit
from stabkit.errors import UsageError
from stabkit.runlog import RunWriter
from stabkit.runlog.format import HEADER_BYTES


def resume(checkpoint: dict[str, Any], logdir: Path, steps: int, inside: bool = False) -> None:
    """Go on from a checkpoint, loaded before the `with` or inside it."""
    model, optimizer = make()

    def restore() -> None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])

    if not inside:
        restore()
    with stabkit.watch(model, optimizer, logdir, tensorboard=False):
        if inside:
            restore()
        for _ in range(steps):
            step(model, optimizer)


def test_the_same_run_twice_is_two_attempts(tmp_path: Path) -> None:
    train(tmp_path / "run", 5)
    train(tmp_path / "run", 3)
    last = stabkit.load(tmp_path / "run")
    assert (last.attempt, last.attempts, last.steps.tolist()) == (1, 2, [1, 2, 3])
    assert last.stream.tensor_steps.tolist() == [0, 1, 2, 3]
    assert last.notes == ("2 attempts in this directory; this is the last one",)
    first = stabkit.load(tmp_path / "run", attempt=0)
    assert (first.attempt, first.steps.tolist(), first.notes) == (0, [1, 2, 3, 4, 5], ())
    with pytest.raises(UsageError, match="attempts 0 to 1; there is no attempt 2"):
        stabkit.load(tmp_path / "run", attempt=2)


def test_an_attempt_knows_the_one_before_it(tmp_path: Path) -> None:
    for steps in (5, 4, 3):
        train(tmp_path / "run", steps)
    before = stabkit.load(tmp_path / "run").until(2).previous()
    same = stabkit.load(tmp_path / "run", attempt=1)
    assert before is not None and before.steps.tolist() == same.steps.tolist() == [1, 2, 3, 4]
    assert np.array_equal(before.table("weight_norm").values, same.table("weight_norm").values)
    assert stabkit.load(tmp_path / "run", attempt=0).previous() is None


@pytest.mark.parametrize("inside", [False, True], ids=["before the with", "inside the with"])
def test_a_resumed_run_goes_on(tmp_path: Path, inside: bool) -> None:
    checkpoint = train(tmp_path / "run", 5)
    resume(checkpoint, tmp_path / "run", 4, inside)
    run = stabkit.load(tmp_path / "run")
    assert run.attempts == 1 and run.steps.tolist() == list(range(1, 10))
    assert run.stream.tensor_steps.tolist() == list(range(10))
    assert run.notes == ()
    assert [e["first_step"] for e in run.events if e["event"] == "attempt"] == [1, 6]


@pytest.mark.parametrize(("steps", "end"), [(7, 11), (3, 10)], ids=["past the end", "not as far again"])
def test_from_an_older_checkpoint_the_later_records_count(tmp_path: Path, steps: int, end: int) -> None:
    kept: dict[str, Any] = {}
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for done in range(1, 11):
            step(model, optimizer)
            if done == 4:
                kept = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    before = stabkit.load(tmp_path / "run").series("loss").values
    resume(kept, tmp_path / "run", steps)
    run = stabkit.load(tmp_path / "run")
    loss = run.series("loss").values
    assert run.steps.tolist() == list(range(1, end + 1)) and run.attempts == 1
    assert (loss[:4] == before[:4]).all() and (loss[4 : 4 + min(steps, 6)] != before[4 : 4 + min(steps, 6)]).all()
    replaced = min(4 + steps, 10)
    expected = [
        f"{replaced - 4} records of steps 5 to {replaced} were replaced when the run was resumed from an older "
        "checkpoint; the later ones count"
    ]
    if steps == 3:
        assert (loss[7:] == before[7:]).all()
        expected.append("steps 8 to 10 were recorded before the run was resumed at step 5, and it has not come as far again")
    assert run.notes == tuple(expected)


def test_a_resume_that_measures_less_does_not_mix_with_what_it_replaced(write: Callable[..., Path]) -> None:
    write(range(1, 9))
    logdir = write(range(5, 8), count=4, tensors=None, time=2e9)
    run = stabkit.load(logdir)
    assert run.steps.tolist() == list(range(1, 9))
    assert run.stream.tensor_steps.tolist() == [1, 2, 3, 4, 8]


def test_a_damaged_later_record_does_not_bring_the_replaced_one_back(write: Callable[..., Path]) -> None:
    write(range(1, 9))
    logdir = write(range(5, 9), count=4, loss=-1.0)
    path = logdir / "rank00000" / "optimizer0" / "steps-000001.npy"
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + np.load(path).dtype.itemsize + 50] ^= 1  # in the record of step 6
    path.write_bytes(data)
    run = stabkit.load(logdir)
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert run.series("loss").values.tolist() == [99, 98, 97, 96, -1, -1, -1]


@pytest.mark.parametrize("damage", ["run.json", "both", "gone"])
def test_attempts_are_counted_by_the_records(write: Callable[..., Path], damage: str) -> None:
    write(range(1, 4))
    logdir = write(range(1, 5))
    for name in ("run.json",) if damage == "run.json" else ("run.json", "events.jsonl"):
        path = logdir / "rank00000" / name
        path.unlink() if damage == "gone" else path.write_bytes(b"\xff" * 50)
    assert stabkit.load(logdir).attempts == 2
    run = stabkit.load(write(range(1, 6)))
    assert (run.attempts, run.steps.tolist()) == (3, [1, 2, 3, 4, 5])
    assert [t.name for t in run.tensors] == ["a", "b"]
    earlier = stabkit.load(logdir, attempt=1)
    assert [t.name for t in earlier.tensors] == (["a", "b"] if damage == "run.json" else ["tensor0", "tensor1"])


def test_a_lost_layout_is_not_given_to_another_one(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Else the records of the lost layout would bear the names of the new one."""
    logdir = write(range(1, 4))
    for name in ("run.json", "events.jsonl"):
        (logdir / "rank00000" / name).unlink()
    writer = RunWriter(logdir, {})
    number = writer.layout(0, layout_of("x", "y"))
    attempt, first = writer.begin_attempt(0, 3)
    writer.write(0, record(first, attempt, number))
    writer.close()
    run = stabkit.load(logdir)
    assert (number, attempt, first) == (1, 0, 4)
    assert [t.name for t in run.tensors] == ["tensor0", "tensor1", "x", "y"]
    assert run.table("grad_absmax").values[0, :2].tolist() == [1, 1.1]
    assert run.table("grad_absmax").series("x").values[-1] == 4


def test_an_attempt_without_a_step_is_none(tmp_path: Path, write: Callable[..., Path]) -> None:
    """A run that died before its first step was over, or whose first step failed and was tried again."""
    logdir = write([0])
    logdir = write([0])
    assert stabkit.load(logdir).attempts == 1
    writer = RunWriter(logdir, {})
    number = writer.layout(0, layout_of("a", "b"))
    assert writer.begin_attempt(0, 0) == (0, 1)
    writer.write(0, record(0, 0, number))
    assert writer.begin_attempt(0, 0) == (0, 1)
    writer.write(0, record(1, 0, number))
    assert writer.begin_attempt(0, 0) == (1, 1)
    writer.write(0, record(1, 1, number))
    writer.close()
    run = stabkit.load(logdir)
    assert run.attempts == 2 and run.steps.tolist() == [1]


def test_optimizers_of_one_run_share_its_attempts(tmp_path: Path) -> None:
    """Also where one of them did not come to step in an earlier attempt."""

    def run(order: list[int]) -> None:
        writer = RunWriter(tmp_path, {})
        for optimizer in order:
            number = writer.layout(optimizer, layout_of(f"net{optimizer}.a", f"net{optimizer}.b"))
            attempt, first = writer.begin_attempt(optimizer, 0)
            writer.write(optimizer, record(first, attempt, number))
        writer.close()

    run([0])
    run([1, 0])
    last = stabkit.load(tmp_path)
    assert last.attempts == 2
    assert [stream.steps.tolist() for stream in last.streams] == [[1], [1]]
    first = stabkit.load(tmp_path, attempt=0)
    assert [stream.steps.tolist() for stream in first.streams] == [[1], []]


def test_a_reinitialised_optimizer_begins_an_attempt(tmp_path: Path) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            step(model, optimizer)
        optimizer.state.clear()
        for _ in range(2):
            step(model, optimizer)
    run = stabkit.load(tmp_path)
    assert (run.attempts, run.steps.tolist()) == (2, [1, 2])


def test_an_optimizer_without_a_count_goes_on_where_the_log_ends(tmp_path: Path) -> None:
    """SGD's momentum is state, so a checkpoint was loaded; how many steps it made only the log knows."""
    model = make()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
            for _ in range(3):
                step(model, optimizer)
    run = stabkit.load(tmp_path)
    assert (run.attempts, run.steps.tolist()) == (1, [1, 2, 3, 4, 5, 6])


def test_notes_and_numbers_belong_to_their_attempt(tmp_path: Path) -> None:
    for length in (6, 3):
        model, optimizer = make()
        with stabkit.watch(model, optimizer, tmp_path, tensorboard=False) as watching:
            watching.log(val_loss=float(length))
            watching.mark(f"begin of {length}")
            for done in range(1, length + 1):
                step(model, optimizer)
                watching.log(val_loss=done + length / 10)
    last, first = stabkit.load(tmp_path), stabkit.load(tmp_path, attempt=0)
    assert last.series("val_loss").steps.tolist() == [0, 1, 2, 3]
    assert last.series("val_loss").values.tolist() == [3.0, 1.3, 2.3, 3.3]
    assert first.series("val_loss").values.tolist() == [6.0, 1.6, 2.6, 3.6, 4.6, 5.6, 6.6]
    assert [e["note"] for e in last.events if e["event"] == "mark"] == ["begin of 3"]
    assert [e["note"] for e in first.events if e["event"] == "mark"] == ["begin of 6"]


def test_first_step_numbers_the_steps(tmp_path: Path) -> None:
    train(tmp_path / "run", 3, first_step=101)
    assert stabkit.load(tmp_path / "run").steps.tolist() == [101, 102, 103]


def test_a_count_that_is_lost_in_mid_run_goes_on_too(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, {})
    number = writer.layout(0, layout_of("a", "b"))
    assert writer.begin_attempt(0, 7) == (0, 8)
    writer.write(0, record(8, 0, number))
    assert writer.begin_attempt(0, -1) == (0, 9)
    writer.close()
