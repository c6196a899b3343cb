"""What `stabkit info` says of a log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sample

from stabkit.report.info import info
from stabkit.runlog import RunLog, Stream, load


def test_a_log_from_disk(draw: Any, tmp_path: Path) -> None:
    run = replace(load(sample.write_run(tmp_path / "run")), path="runs/a")
    text = draw(info, [run], 12_345)
    assert text.startswith("runs/a: 3 steps, 1 attempt, 1 tensor, 6 parameters, 12.3 kB\n\n")
    assert "\nrecorded by   stabkit 0.1.0, torch 2.9, python 3.12\n" in text
    assert "2 s, 1 s a step\n" in text
    assert "\nsteps         1 to 3; tensors measured at 3 of 3\n" in text
    assert (
        """
Optimizer: AdamW, foreach
  group  tensors  parameters  lr   weight_decay  beta1  beta2  eps
      0        1           6  0.1  0             0.9    0.99   1e-08

  role    tensors  parameters  dtype    such as
  matrix        1           6  float32  w 2 x 3
"""
        in text
    )
    assert "\nPer parameter group: 5 of 5 quantities\n  lr, weight_decay, beta1, beta2, eps\n" in text
    assert "loss_scale (recorded by a loop with an enabled GradScaler)" in " ".join(text.split())
    assert text.endswith("\nLogged by you\n  val_loss (1 point)\n\nMarks\n  - step 3: the end\n")


def test_attempts_resumes_faults_and_damage(draw: Any) -> None:
    steps = np.array([1, 2, 4, 5])
    stream = Stream(
        steps,
        {"loss": np.array([1.0, np.nan, 2.0, 3.0]), "skipped": np.array([0.0, 1, 0, 0])},
        {"lr": np.array([[0.0], [0.1], [0.2], [0.1]])},
    )
    events = (
        {"event": "attempt", "attempt": 1, "first_step": 1, "count": 0},
        {"event": "attempt", "attempt": 1, "first_step": 4, "count": 3},
        {"event": "autocast", "dtype": "float16", "step": 0},
        {"event": "fault", "where": "step_end", "place": "x.py:3", "error": "KeyError: \x1b[31m", "stopped": True},
    )
    about: dict[str, Any] = {"facts": {"precision": "float32", "total_steps": 1000}, "attempts": 2}
    old = RunLog(streams=(Stream(np.array([1, 2, 3])),), attempt=0, **about)
    run = RunLog(streams=(stream,), attempt=1, events=events, notes=("run.json is damaged",), **about)
    text = draw(info, [old, run], 0)
    assert text.startswith("this run: 4 steps, 2 attempts, 0 tensors, 0 parameters\n")
    assert "\nprecision     float32, autocast float16 from step 0\nplanned       1,000 steps\n" in text
    assert "\nattempt 0     1 to 3; tensors measured at 0 of 3\n" in text
    assert "\nattempt 1     1 to 5, 1 step missing in between, 1 of them skipped; tensors" in text
    assert "resumed at step 4\n" in text
    assert "0 to 0.2, last 0.1" in text
    assert "loss (3 of 4)" in text
    assert "  - in step_end, x.py:3: KeyError: \\x1b[31m; the recorder stopped here\n" in text
    assert text.endswith("Notes on the log\n  - run.json is damaged\n")


def test_a_log_without_a_step(draw: Any) -> None:
    text = draw(info, [RunLog(streams=(Stream(np.empty(0, np.int64)),))], 0)
    assert "\nsteps         no steps\n" in text


def test_how_many_processes_and_which_ended_early(draw: Any) -> None:
    streams = [Stream(np.arange(1, last + 1), {"loss": np.ones(last)}) for last in (9, 4)]
    run = RunLog(streams=(streams[0],), ranks={rank: (stream,) for rank, stream in enumerate(streams)})
    assert "\nprocesses     2 with a log; rank 1 ended at step 4\n" in draw(info, [run], 0)
    whole = RunLog(streams=(streams[0],), ranks={0: (streams[0],), 1: (streams[0],)})
    assert "\nprocesses     2 with a log, all as far as step 9\n" in draw(info, [whole], 0)
    assert "processes" not in draw(info, [RunLog(streams=(streams[0],))], 0)
