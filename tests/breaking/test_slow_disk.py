"""A disk whose writes take seconds: the training has the same bits, waits once, and the log is whole and says so.

The disk is a real one behind a `write` that sleeps (slow.c, preloaded), so that whatever writes is slow, however it writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import stabkit
from stabkit import outbox
from stabkit.outbox import Outbox

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    library = tmp_path_factory.mktemp("shim") / "slow.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "slow.c", "-ldl"], check=True)
    return library


def train(shim: Path, folder: Path, plan: dict[int, float]) -> dict[str, Any]:
    ours = {"LD_PRELOAD": shim, "SLOW_UNDER": folder / "run", "SLOW_SWITCH": folder / "switch", "OMP_NUM_THREADS": "1"}
    environment = os.environ | {name: str(value) for name, value in ours.items()}
    command = [sys.executable, "-m", "tests.breaking.slow_training", folder / "run", folder / "switch", json.dumps(plan)]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=True)
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


@pytest.mark.slow
def test_a_disk_that_stalls_holds_the_training_up_once(shim: Path, tmp_path: Path) -> None:
    """After step 5 each write takes 1.2 s until step 6 is over, and again from step 25 to step 40."""
    outcome = train(shim, tmp_path, {5: 1.2, 6: 0, 25: 1.2, 40: 0})
    assert outcome["same"]
    assert len([text for text in outcome["warned"] if "a disk that stalls" in text]) == 1, outcome["warned"]
    slow = [step for step, took in enumerate(outcome["took"], start=1) if took > 1]
    assert slow == [6], "one step waited, and none afterwards"
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, 61)), "everything that waited was written in the end, in order"
    assert run.stream.tensor_steps.tolist() == list(range(61))
    assert [event["note"] for event in run.events if event["event"] == "mark"] == [f"step {i}" for i in range(60)]
    told = [event for event in run.events if event["event"] == "slow_disk"]
    assert told[0]["seconds"] >= 1.2 and "behind" not in told[0]
    assert [event["lost"] for event in told if event.get("behind")] == [0]


def test_steps_do_not_wait_for_a_disk_that_has_stalled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STALL", 0.05)
    monkeypatch.setattr(outbox, "WAIT", 0.02)
    monkeypatch.setattr(outbox, "ROOM", 10 * 2048)
    stalled, caught_up, done = [], [], []
    box = Outbox(stalled.append, lambda seconds, lost: caught_up.append((seconds, lost)))
    box.do(lambda: done.append(0))
    assert not box.apart
    box.do(lambda: (time.sleep(0.06), done.append(1)))
    assert box.apart and len(stalled) == 1 and stalled[0] >= 0.06
    box.do(lambda: done.append(2))
    assert done == [0, 1, 2], "as long as the thread keeps up, what was done is done"

    gate = threading.Event()
    begin = time.monotonic()
    for number in range(3, 18):
        box.do(lambda number=number: (gate.wait(), done.append(number)), size=1024)
    assert time.monotonic() - begin < 0.5, "one wait, not fifteen"
    assert done == [0, 1, 2]
    with pytest.raises(TimeoutError):
        box.ask(lambda: 1)
    gate.set()
    assert box.settle() == 0
    assert done == list(range(13)), "what found no room was left out, the rest is in order"
    assert [lost for _, lost in caught_up] == [6]
    assert box.ask(lambda: 7) == 7
    box.end()


def test_what_a_late_act_raises_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STALL", 0.02)
    monkeypatch.setattr(outbox, "WAIT", 0.02)

    def refuse() -> None:
        time.sleep(0.03)
        raise OSError("full")

    box = Outbox(lambda seconds: None, lambda seconds, lost: None)
    with pytest.raises(OSError, match="full"):
        box.do(refuse)
    assert box.apart
    box.do(refuse)
    assert box.settle() == 0
    with pytest.raises(OSError, match="full"):
        box.do(lambda: None)
    box.do(lambda: None)
    with pytest.raises(ZeroDivisionError):
        box.ask(lambda: 1 / 0)
    box.end()


def test_a_forked_child_does_nothing_of_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STALL", 0.02)
    box = Outbox(lambda seconds: None, lambda seconds, lost: None)
    box.do(lambda: time.sleep(0.03))
    assert box.apart
    child = os.fork()
    if child == 0:
        box.do(lambda: os._exit(1))
        os._exit(box.settle())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    box.end()
