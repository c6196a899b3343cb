"""Several runs judged in several processes: the same answers in the same order, and a Ctrl-C that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stabkit.analyzers import ANALYZERS
from stabkit.cli import several
from stabkit.cli.several import Task, judge_all
from stabkit.finding import Diagnosis


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three runs, one that goes up, and between them a path where there is none."""
    found = []
    for number in range(3):
        losses = np.where(np.arange(60) >= (30 if number == 1 else 99), np.nan, 3 - np.arange(60) / 100)
        file = tmp_path / f"run{number}.csv"
        file.write_text("step,loss,grad_norm\n" + "\n".join(f"{i},{loss},{1.0}" for i, loss in enumerate(losses)))
        found.append(str(file))
    return [found[0], str(tmp_path / "nothing"), *found[1:]]


def test_processes_say_what_one_says_in_the_same_order(paths: list[str]) -> None:
    task = Task(None, ANALYZERS, {})
    alone, together = list(judge_all(paths, task, 1)), list(judge_all(paths, task, 2))
    assert [repr(judged.run) for judged in together] == [repr(judged.run) for judged in alone]  # NaN is not equal to itself
    assert [judged.code for judged in together] == [0, 3, 0, 0]
    for mine, its in zip(alone, together, strict=True):
        if mine.log is not None and its.log is not None:
            np.testing.assert_array_equal(its.log.series("loss").values, mine.log.series("loss").values)
    assert isinstance(together[2].run, Diagnosis) and together[2].run.findings


def test_small_runs_begin_no_process(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a process was begun"))
    assert len(list(judge_all(paths, Task(None, ANALYZERS, {})))) == 4


COMMAND = """
import sys
from stabkit.cli import main, several
if __name__ == "__main__":
    several.LARGE = 0
    main()
"""


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_without_a_word(paths: list[str], tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    many = [paths[0]] * 300
    process = subprocess.Popen([sys.executable, str(script), "analyze", *many], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    assert process.stdout and process.stdout.readline(), "the first run is told; the others are being judged"
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in complaint
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_the_command_prints_all_runs(paths: list[str], tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    done = subprocess.run([sys.executable, str(script), "analyze", "--format", "json", *paths], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert [Path(run["path"]).name for run in json.loads(done.stdout)["runs"]] == [Path(path).name for path in paths]
    assert done.returncode == 3 and done.stderr.count("nothing") >= 1 and "Traceback" not in done.stderr
