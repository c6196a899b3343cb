"""What happens around a training: descriptors run out, the clock is put back, somebody tidies the directory up, a pause.

In each case the training has the bits of an unwatched one, and the log has every step that could be written, and says what not.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import stabkit
from stabkit.live.follow import Follower
from stabkit.report.info import facts
from tests.breaking.training import train
from tests.runlog.runlog_training import small_segments

STEPS = 20
SEGMENTS = pytest.mark.parametrize("segment", [4096, 3], ids=["one segment", "many segments"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def unwatched(steps: int = STEPS) -> Any:
    return train(steps=steps).bits


def watched(logdir: Path, between: Callable[[int], None], segment: int = 4096) -> list[str]:
    """Train with something happening after each step; what the user was told."""
    with small_segments(segment):
        outcome = train(logdir, steps=STEPS, between=between)
    assert outcome.bits == unwatched()
    return outcome.warned


def at(step: int, act: Callable[[], Any]) -> Callable[[int], None]:
    return lambda done: act() if done == step else None


def steps_in(logdir: Path) -> list[int]:
    found: list[int] = stabkit.load(logdir).steps.tolist()
    return found


@contextmanager
def restored_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@SEGMENTS
def test_descriptors_run_out_and_come_back(segment: int, tmp_path: Path) -> None:
    """Not even those that were closed can be had again: nothing can be opened from step 7 to step 12."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def between(done: int) -> None:
        if done in (7, 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (3 if done == 7 else limits[0], limits[1]))

    with restored_limit():
        told = watched(tmp_path / "run", between, segment)
    run = stabkit.load(tmp_path / "run")
    if segment == 4096:
        assert run.steps.tolist() == list(range(1, STEPS + 1)) and not told, "what is open is enough"
    else:
        assert run.steps.tolist() == [*range(1, 10), *range(13, STEPS + 1)], "segments end after 3, 6 and 9"
        assert any("3 steps after step 9 are not in the log" in note for note in run.notes)
        assert any("Too many open files" in event["error"] for event in run.events if event["event"] == "fault")
        assert any("Too many open files" in text for text in told)
    measured = [step for step in run.steps.tolist() if segment == 4096 or step != 9]  # a segment of tensors begins there
    assert run.stream.tensor_steps.tolist() == [0, *measured]


@SEGMENTS
def test_a_directory_that_is_deleted_begins_anew(segment: int, tmp_path: Path) -> None:
    told = watched(tmp_path / "run", at(7, lambda: shutil.rmtree(tmp_path / "run")), segment)
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(8, STEPS + 1))
    assert run.tensors[0].name == "0.weight" and run.facts["torch"], "what describes the log is written once more"
    assert [event["step"] for event in run.events if event["event"] == "gone"] == [8]
    assert len([text for text in told if "deleted or moved" in text]) == 1


def test_what_describes_a_log_that_was_begun_anew_survives_a_kill(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            train(tmp_path / "run", steps=STEPS, between=lambda done: (shutil.rmtree(tmp_path / "run") if done == 7 else None,
                  os.kill(os.getpid(), signal.SIGKILL) if done == 12 else None))  # fmt: skip
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == [8, 9, 10, 11, 12] and run.tensors[0].name == "0.weight"


@SEGMENTS
def test_a_directory_that_is_renamed_takes_its_open_files_along(segment: int, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    watched(tmp_path / "run", at(7, lambda: (tmp_path / "run").rename(moved)), segment)
    here = steps_in(tmp_path / "run") if segment == 3 else []
    assert steps_in(moved) + here == list(range(1, STEPS + 1)), "nothing is lost, whether new files are needed or not"
    if segment == 3:
        assert stabkit.load(tmp_path / "run").tensors[0].name == "0.weight"


@SEGMENTS
def test_a_directory_that_is_replaced_by_another(segment: int, tmp_path: Path) -> None:
    run, old = tmp_path / "run", tmp_path / "old"
    watched(run, at(7, lambda: (run.rename(old), (run / "rank00000").mkdir(parents=True))), segment)
    assert steps_in(old) + (steps_in(run) if segment == 3 else []) == list(range(1, STEPS + 1))


def test_a_file_in_place_of_the_directory_costs_the_log_and_no_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = watched(run, at(7, lambda: (shutil.rmtree(run), run.write_text("x"))))
    assert any("Not a directory" in text for text in told)
    assert len(told) <= 3, "once for the steps, once for the notes, once at the end"


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="Windows has other rights")
def test_a_directory_that_is_made_read_only_and_writable_again(tmp_path: Path) -> None:
    """Files that are open go on; new ones cannot be made until the rights are back. Root may do anything: another trains."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:  # pytest keeps its folders to itself
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    folder = tmp_path / "run" / "rank00000" / "optimizer0"
    wanted = unwatched()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            with small_segments(3):
                outcome = train(tmp_path / "run", steps=STEPS, tensorboard=False, between=lambda done: (
                    folder.chmod(0o555) if done == 7 else None, folder.chmod(0o755) if done == 12 else None))  # fmt: skip
            told = any("Permission denied" in text for text in outcome.warned)
            os._exit(0 if outcome.bits == wanted and told else 3)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == [*range(1, 10), *range(13, STEPS + 1)]
    assert any("Permission denied" in event["error"] for event in run.events if event["event"] == "fault")


def test_a_clock_that_is_put_back_by_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records keep what the clock said; nothing depends on its going forward, and live findings are told all the same."""
    begun, real, offset = time.time(), time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    told = watched(tmp_path / "run", at(7, lambda: offset.__setitem__(0, -3600.0)), 3)
    assert not told
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, STEPS + 1)) and not run.notes
    times = run.series("time").values
    assert times[7] < times[6] - 3500
    assert "-" not in facts(run)["when"].partition(", ")[2], "no negative durations"
    assert run.stream.tensor_steps.tolist() == list(range(STEPS + 1))
    from stabkit.live.follow import _known

    assert _known(run, begun) == -1, "no step of this run was known before it began"
    assert Follower(tmp_path / "run", since=begun).look() == Follower(tmp_path / "run").look()


def test_a_budget_is_kept_while_the_clock_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, [0.0]

    def jumping() -> float:
        jumps[0] += 1
        return real() + (3600 if jumps[0] % 2 else -3600)

    monkeypatch.setattr(time, "time", jumping)
    outcome = train(tmp_path / "run", steps=STEPS, budget=0.5)
    assert outcome.bits == unwatched() and steps_in(tmp_path / "run") == list(range(1, STEPS + 1))


def test_a_training_that_is_stopped_and_goes_on(tmp_path: Path) -> None:
    wanted = unwatched(60)
    child = os.fork()
    if child == 0:
        try:
            pause = lambda done: time.sleep(0.004)  # noqa: E731
            outcome = train(tmp_path / "run", steps=60, between=pause)
            os._exit(0 if outcome.bits == wanted and not outcome.warned else 3)
        except BaseException:
            os._exit(1)
    for _ in range(8):
        time.sleep(0.03)
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.02)
        os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, 61)) and not run.notes
    assert not [event for event in run.events if event["event"] in ("fault", "lost", "slow_disk")]
