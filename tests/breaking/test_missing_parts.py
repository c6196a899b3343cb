"""A part that a training can do without cannot be imported, or breaks while it is: training goes on, and the log says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stabkit
from stabkit.hooks.statistics import backend
from tests.breaking.training import STEPS

TENSORBOARD = ("tensorboard", "google.protobuf")
OTHERS = ("scipy", "rich", "click", "fsspec", "pyarrow", "google_crc32c")
COMPILED = ("stabkit.hooks.statistics._one_pass",)
BUILT = backend() == "c"


def train_without(logdir: Path, error: str, *names: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.breaking.without", str(logdir), error, *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert outcome["same"] and not outcome["imported"]
    run = stabkit.load(logdir)
    assert run.steps.tolist() == list(range(1, STEPS + 1)) and len(run.stream.tensor_steps) == STEPS + 1
    compiled = COMPILED[0] not in names
    assert run.facts["statistics"] == ("c" if compiled else "reference") or not BUILT
    return outcome | {"not shown": [event["what"] for event in run.events if event["event"] == "not_shown"]}


def check(logdir: Path, error: str) -> None:
    outcome = train_without(logdir, error, *TENSORBOARD, *OTHERS, *COMPILED)
    assert outcome["not shown"] == ["TensorBoard"]
    assert len([text for text in outcome["warned"] if "there will be no TensorBoard output" in text]) == 1


@pytest.mark.slow
def test_a_training_without_any_optional_part(tmp_path: Path) -> None:
    check(tmp_path / "run", "ImportError")


@pytest.mark.slow
@pytest.mark.parametrize("error", ["TypeError", "OSError", "SystemError"])
def test_a_training_with_parts_that_break_while_they_are_imported(error: str, tmp_path: Path) -> None:
    """A protobuf of the wrong version raises a TypeError, a library that is missing an OSError."""
    check(tmp_path / "run", error)


@pytest.mark.slow
@pytest.mark.parametrize("names", [OTHERS, COMPILED], ids=["what analyses", "the compiled part"])
def test_a_training_without_some_parts(names: tuple[str, ...], tmp_path: Path) -> None:
    outcome = train_without(tmp_path / "run", "ImportError", *names)
    assert outcome["not shown"] == []
