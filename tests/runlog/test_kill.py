"""`kill -9` at any moment: what was recorded up to the last finished step is in the log."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runlog_records import layout_of, record
from runlog_training import train_and_tell

import stabkit
from stabkit.runlog import RunLog, RunWriter


def check(run: RunLog, finished: int) -> None:
    """All steps that were finished are there, and at most the one in flight beyond them."""
    assert len(run.steps) in (finished, finished + 1)
    assert run.steps.tolist() == list(range(1, len(run.steps) + 1))
    assert set(range(finished + 1)) <= set(run.stream.tensor_steps.tolist()) <= {0, *run.steps.tolist()}


def train_until_killed(processes: Any, logdir: Path, segment_steps: int, steps: int, delay: float) -> int:
    """Kill a training after so many steps and seconds; returns the last step that it had finished."""
    receive, send = processes.Pipe(duplex=False)
    process = processes.Process(target=train_and_tell, args=(str(logdir), segment_steps, send))
    process.start()
    send.close()
    finished = 0
    while finished < steps:
        finished = receive.recv()
    time.sleep(delay)
    process.kill()
    process.join()
    while receive.poll():  # what it had told before it died
        try:
            finished = receive.recv()
        except EOFError:
            break
    return finished


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_training_loses_at_most_the_step_in_flight(processes: Any, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    finished = train_until_killed(processes, tmp_path / "run", 4096, chance.randint(1, 60), chance.random() / 100)
    run = stabkit.load(tmp_path / "run")
    check(run, finished)
    assert all("incomplete" in note for note in run.notes)


def test_killed_again_and_again_in_one_directory(processes: Any, tmp_path: Path) -> None:
    for seed in range(4):
        chance = random.Random(seed)
        finished = train_until_killed(processes, tmp_path / "run", 3, chance.randint(1, 20), chance.random() / 100)
        run = stabkit.load(tmp_path / "run")
        assert run.attempts == seed + 1
        check(run, finished)


def test_kill_storm_at_segment_roll_over(processes: Any, tmp_path: Path) -> None:
    for seed in range(30):
        chance = random.Random(seed)
        finished = train_until_killed(processes, tmp_path / str(seed), 1, chance.randint(1, 10), chance.random() / 300)
        check(stabkit.load(tmp_path / str(seed)), finished)


def kill_at_call(number: int) -> None:
    """From now on, die at the so-manieth call that changes a file: before it is made, or in the middle of a write."""
    calls = [0]

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    write = os.write

    def torn(file: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] == number:
            write(file, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, data)

    os.write = torn  # type: ignore[assignment]
    for name in ("open", "close", "replace", "rename", "unlink", "mkdir", "lseek"):
        setattr(os, name, deadly(getattr(os, name)))


def write_and_die(logdir: Path, number: int, done: mmap.mmap) -> bool:
    """In a forked child, two steps a segment and a change of layout. Whether it lived to the end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        kill_at_call(number)
        writer = RunWriter(logdir, {"every": 1}, segment_steps=2)
        layout = writer.layout(0, layout_of("a", "b"))
        attempt, _ = writer.begin_attempt(0, 0)
        writer.write(0, record(0, attempt, layout))
        for step in range(1, 6):
            if step == 4:
                layout = writer.layout(0, layout_of("a", "b", "c"))
            writer.write(0, record(step, attempt, layout, tensors=3 if step >= 4 else 2))
            writer.scalars(step, {"val_loss": 1.0})
            done[0] = step
        writer.close()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "second attempt"])
def test_killed_at_every_single_system_call(tmp_path: Path, write: Callable[..., Path], earlier: bool) -> None:
    """Including those of a roll-over and of a layout change. Another run in the same directory then goes on cleanly."""
    done = mmap.mmap(-1, 1)
    number, alive = 0, False
    while not alive:
        number += 1
        done[0] = 0
        name = f"run{number}"
        if earlier:
            write(range(1, 4), name)
        alive = write_and_die(tmp_path / name, number, done)
        finished = done[0]
        if finished or earlier:
            run = stabkit.load(tmp_path / name)
            attempts = run.attempts
            if earlier and attempts == 1:
                assert finished == 0
            else:
                check(run, finished)
                table = run.table("grad_absmax")
                assert np.isfinite(table.series("a").values).all() and np.isfinite(table.series("b").values).all()
            expected = ("incomplete", "attempts", "damaged line", "the records were found by their checksums")
            assert all(any(words in note for words in expected) for note in run.notes), run.notes
        again = stabkit.load(write(range(1, 3), name))
        assert again.steps.tolist() == [1, 2] and [t.name for t in again.tensors] == ["a", "b"]
        assert again.attempts == (attempts + 1 if earlier or finished else again.attempts)
    assert number > 60
