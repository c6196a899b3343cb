"""Whatever becomes of the training, the process that judges it does not outlive it by more than seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_training import alive, train_for_long

WAIT_FOREVER = """
import os, sys, time, torch, stabkit
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.Adam(model.parameters())
on_finding = lambda finding: print("told", finding.rule, flush=True)
with stabkit.watch(model, optimizer, sys.argv[1], tensorboard=False, on_finding=on_finding):
    for step in range(1, 100_000):
        optimizer.zero_grad()
        (model(torch.randn(8, 4)).square().mean() * (torch.nan if step == 5 else 1)).backward()
        optimizer.step()
        time.sleep(0.02)
        {act}
"""


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends within so many seconds."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("workers", [False, True], ids=["alone", "with forked workers"])
def test_a_killed_training_leaves_nobody_behind(workers: bool, tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    training = context.Process(target=train_for_long, args=(str(tmp_path / "run"), send, workers))
    training.start()
    judging = receive.recv()
    assert alive(judging)
    training.kill()
    training.join()
    assert gone(judging, 8)


def run(act: str, logdir: Path) -> subprocess.Popen[str]:
    """A training in a process group of its own that does something in every step."""
    command = [sys.executable, "-c", WAIT_FOREVER.replace("{act}", act), str(logdir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_ctrl_c_ends_the_training_and_says_nothing_of_ours(tmp_path: Path) -> None:
    with run("pass", tmp_path / "run") as training:
        assert training.stdout and training.stdout.readline() == "told SK301\n"
        os.killpg(training.pid, signal.SIGINT)
        _, errors = training.communicate(timeout=60)
    assert training.returncode in (130, -signal.SIGINT)
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors and "was not waited for" not in errors


@pytest.mark.parametrize("act, code", [("if step > 50: sys.exit(7)", 7), ("if step > 50: os._exit(8)", 8)])
def test_an_interpreter_that_exits_does_not_hang(act: str, code: int, tmp_path: Path) -> None:
    with run(act, tmp_path / "run") as training:
        training.communicate(timeout=60)
    assert training.returncode == code
