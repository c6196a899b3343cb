"""`stabkit analyze --follow`, in a process of its own beside a real training."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from live_training import BAD, train

import stabkit
from stabkit.live.follow import Follower
from stabkit.runlog import Layout, RunWriter, StepRecord, TensorInfo
from stabkit.runlog.record import Group


def follow(path: Path, *options: str) -> subprocess.Popen[str]:
    """Begin to follow a log."""
    command = [sys.executable, "-m", "stabkit", "analyze", "--follow", str(path), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "110"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def over(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and what was printed, once it has ended by itself."""
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return process.returncode, output, errors


def test_a_finding_appears_while_the_run_goes_on_and_the_end_ends_it(tmp_path: Path) -> None:
    process = follow(tmp_path / "run", "--wait", "--format", "json")
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    train(tmp_path / "run", 3000, bad=BAD, until=lambda step: bool(lines), pause=0.02)
    assert lines, "it was printed before the run was over"
    reader.join(60)
    assert process.wait(60) == 1
    found = [json.loads(line) for line in lines]
    offline = stabkit.analyze(stabkit.load(tmp_path / "run")).findings
    assert {(f["rule"], f["first_step"]) for f in found} == {(f.rule, f.first_step) for f in offline}
    assert found[0]["schema"] == 1 and found[0]["path"] == str(tmp_path / "run") and found[0]["steps"] >= BAD


def test_of_a_run_that_is_over_all_is_told_at_once(tmp_path: Path) -> None:
    train(tmp_path / "run", bad=BAD)
    code, output, errors = over(follow(tmp_path / "run"))
    assert code == 1 and "SK301 nonfinite-value" in output and "100 steps" in output.splitlines()[-1]
    assert "following" in errors


def test_a_healthy_run_is_clear(tmp_path: Path) -> None:
    train(tmp_path / "run", 30)
    code, output, _ = over(follow(tmp_path / "run", "--select", "SK301"))
    assert code == 0 and "clear" in output and "not asked" in output


def test_ctrl_c_ends_it_with_the_code_of_what_was_found(tmp_path: Path) -> None:
    def begin(step: int) -> bool:
        if step == 1:
            processes.append(follow(tmp_path / "run"))
        elif step > BAD and not stopped:
            time.sleep(0.05)
            seen = processes[0]
            if step == 150:
                seen.send_signal(signal.SIGINT)
                stopped.append(over(seen))
        return bool(stopped)

    processes: list[subprocess.Popen[str]] = []
    stopped: list[Any] = []
    train(tmp_path / "run", 200, bad=BAD, until=begin, pause=0.02)
    code, output, errors = stopped[0]
    assert code == 1 and "SK301" in output and "stopped following" in errors


def test_a_log_that_is_not_there_is_waited_for_only_if_told(tmp_path: Path) -> None:
    code, _, errors = over(follow(tmp_path / "run"))
    assert code == 3 and "there is no" in errors and "--wait" in errors


def test_a_log_that_is_removed_and_begun_anew_is_followed(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    train(tmp_path / "run", bad=BAD)
    assert "SK301" in [finding.rule for finding in follower.look()] and follower.ended
    assert not follower.look()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(stabkit.errors.NotALogError):
        follower.look()
    train(tmp_path / "run", bad=BAD)
    assert "SK301" in [finding.rule for finding in follower.look()], "another run's finding is another finding"


def test_a_new_attempt_and_a_torn_log_are_followed(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    train(tmp_path / "run", bad=BAD)
    assert follower.look()
    train(tmp_path / "run", bad=BAD)
    assert "SK301" in [finding.rule for finding in follower.look()], "it is the second attempt's"
    for segment in (tmp_path / "run").rglob("*.npy"):
        os.truncate(segment, segment.stat().st_size - 10)
    assert follower.look() == [] and follower.diagnosis and follower.diagnosis.steps == 99


def test_a_step_that_a_rank_has_yet_to_record_is_left_for_later(tmp_path: Path) -> None:
    """Its mean loss would be that of some ranks only, and another one afterwards."""
    info = TensorInfo("w", (4,))
    ranks = [RunWriter(tmp_path / "run", {"world_size": 2}, rank) for rank in (0, 1)]
    numbers = [writer.layout(0, Layout((info,), 1, "AdamW")) for writer in ranks]
    follower = Follower(tmp_path / "run")
    for writer, steps in zip(ranks, (60, 58), strict=True):
        writer.begin_attempt(0, 0)
        for step in range(1, steps + 1):
            about: dict[str, Any] = {"loss": math.nan if step == 60 else 2.0, "loss_reduction": 1, "groups": (Group(lr=0.1),)}
            writer.write(0, StepRecord(step, 0, numbers[0], time=time.time(), **about))
    assert follower.look() == [] and follower.diagnosis and follower.diagnosis.steps == 58
    assert [finding.first_step for finding in follower.look(last=True)] == [60] and follower.diagnosis.steps == 60
    for writer in ranks:
        writer.close()


@pytest.mark.parametrize("options", [("--wait",), ("--follow", "other")])
def test_what_makes_no_sense_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stabkit", "analyze", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--follow" in done.stderr
