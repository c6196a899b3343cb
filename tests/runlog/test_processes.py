"""Several processes and one directory: writers keep apart, forks do no harm, readers may come at any moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from runlog_training import train_and_tell, train_so_many, train_with_fork

import stabkit
from stabkit.errors import NotALogError
from stabkit.runlog.writer import claim_directory


def test_two_processes_never_share_a_directory(processes: Any, tmp_path: Path) -> None:
    meet, where = processes.Barrier(2), processes.Queue()
    both = [processes.Process(target=train_so_many, args=(str(tmp_path / "run"), 25, meet, where)) for _ in range(2)]
    for process in both:
        process.start()
    found = sorted(where.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert found == [str(tmp_path / "run"), str(tmp_path / "run.2")]
    for directory in found:
        run = stabkit.load(directory)
        assert run.steps.tolist() == list(range(1, 26)) and run.attempts == 1 and run.notes == ()


def test_a_fork_in_between_does_not_harm_the_log(processes: Any, tmp_path: Path) -> None:
    process = processes.Process(target=train_with_fork, args=(str(tmp_path / "run"), 20))
    process.start()
    process.join()
    assert process.exitcode == 0
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, 21)) and run.notes == ()
    assert run.series("val_loss").values.tolist() == list(range(1, 21))
    assert not [event for event in run.events if event["event"] == "mark"]


def test_a_free_directory_is_taken_again(tmp_path: Path) -> None:
    first, lock = claim_directory(tmp_path / "run")
    second, other = claim_directory(tmp_path / "run")
    assert (first.name, second.name) == ("run", "run.2")
    assert lock is not None and other is not None
    os.close(lock)
    third, lock = claim_directory(tmp_path / "run")
    assert third == first and lock is not None
    os.close(lock)
    os.close(other)


def test_a_forked_worker_does_not_keep_the_claim_of_a_dead_parent(tmp_path: Path) -> None:
    """A data loader's worker notices only after seconds that its parent was killed; the job's restart must not wait."""
    receive, send = os.pipe()
    parent = os.fork()
    if parent == 0:
        claim_directory(tmp_path / "run")
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        os.write(send, worker.to_bytes(8, "little"))
        time.sleep(60)
        os._exit(0)
    worker = int.from_bytes(os.read(receive, 8), "little")
    try:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        path, lock = claim_directory(tmp_path / "run")
        assert path == tmp_path / "run" and lock is not None
        os.close(lock)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(receive)
        os.close(send)


def test_a_descriptor_that_was_closed_is_left_alone_in_a_fork(tmp_path: Path) -> None:
    """Its number may by then belong to another file."""
    _, lock = claim_directory(tmp_path / "run")
    assert lock is not None
    os.close(lock)
    (tmp_path / "data").write_text("mine")
    file = os.open(tmp_path / "data", os.O_RDONLY)
    assert file == lock
    child = os.fork()
    if child == 0:
        os._exit(0 if os.read(file, 4) == b"mine" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(file)


def test_a_live_log_reads_at_any_moment(processes: Any, tmp_path: Path) -> None:
    receive, send = processes.Pipe(duplex=False)
    process = processes.Process(target=train_and_tell, args=(str(tmp_path / "run"), 7, send))
    process.start()
    send.close()
    finished, reads, end = 0, 0, time.monotonic() + 4
    try:
        while time.monotonic() < end or not finished:
            while receive.poll():
                finished = receive.recv()
            try:
                run = stabkit.load(tmp_path / "run")
            except NotALogError:
                assert not finished
                continue
            reads += 1
            steps, measured = run.steps.tolist(), run.stream.tensor_steps.tolist()
            assert steps == list(range(1, len(steps) + 1)) and len(steps) >= finished
            assert measured == list(range(len(measured))) and len(measured) <= len(steps) + 1
            assert all("incomplete" in note for note in run.notes), run.notes
            if steps:
                assert not (run.series("loss").values != run.series("loss").values).any()
    finally:
        process.kill()
        process.join()
    assert finished > 10 and reads > 10
