"""The machine loses its power: files end anywhere, or in zeros that were never written. What was whole before is read.

Which of two files reached the disk first, nobody knows: each is cut by itself, and two at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stabkit
from benchmarks.fuzz.mutate import Files
from benchmarks.fuzz.targets import put
from stabkit.runlog.format import HEADER_BYTES
from tests.breaking.training import train

STEPS = 5
RANK = "rank00000/"
STEP_FILE, TENSOR_FILE = RANK + "optimizer0/steps-000000.npy", RANK + "optimizer0/tensors-000000.npy"
Cuts = dict[str, tuple[int, bool]]
"""By file, how many bytes are left, and whether zeros take the place of the others."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A log as a training leaves it that is not ended by anything: copied while it is open."""
    folder = tmp_path_factory.mktemp("power")
    torch.set_num_threads(1)

    def copy(done: int) -> None:
        if done == STEPS:
            shutil.copytree(folder / "run" / "rank00000", folder / "copy" / "rank00000")

    train(folder / "run", steps=STEPS, tensorboard=False, between=copy)
    paths = sorted(path for path in (folder / "copy").rglob("*") if path.is_file())
    return {str(path.relative_to(folder / "copy")): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def record_sizes(log: Files) -> dict[str, int]:
    counts = {STEP_FILE: STEPS, TENSOR_FILE: STEPS + 1}  # the weights at entry are a record of tensors
    return {name: (len(log[name]) - HEADER_BYTES) // count for name, count in counts.items()}


def check(log: Files, sizes: dict[str, int], cuts: Cuts, folder: Path) -> None:
    """Cut, read, and hold what is read against what was whole."""
    cut = {name: data[:left] + bytes(len(data) - left if zeros else 0) for name, data in log.items()
           for left, zeros in [cuts.get(name, (len(data), False))]}  # fmt: skip
    whole = {}
    for name, size in sizes.items():
        same = next((i for i, (a, b) in enumerate(zip(cut[name], log[name], strict=False)) if a != b), len(cut[name]))
        whole[name] = (same - HEADER_BYTES) // size if same >= HEADER_BYTES else 0  # a zero in the place of a zero is none
    shutil.rmtree(folder, ignore_errors=True)
    run = stabkit.load(put(cut, folder))
    assert run.steps.tolist() == list(range(1, whole[STEP_FILE] + 1)), cuts
    measured = list(range(whole[TENSOR_FILE]))
    assert run.stream.tensor_steps.tolist() == measured, cuts
    assert np.isfinite(run.series("loss").values).all() if len(run.steps) else True
    if measured and not {RANK + "run.json", RANK + "events.jsonl"} <= set(cuts):
        assert run.tensors[0].name == "0.weight", "one of the two knows the names"
    elif measured:
        assert run.tensors[0].name in ("0.weight", "tensor0")
    scalars = RANK + "scalars.jsonl"
    told = log[scalars][: cuts.get(scalars, (len(log[scalars]), False))[0]].count(b"\n")
    assert told <= len(run.scalars.get("val", ([], []))[0]) <= told + 1, "a line without its newline may be whole"


def ends(log: Files, sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Every place in the last records of every file and in the whole of small ones, and places in headers."""
    for name, data in log.items():
        last = 2 * sizes[name] if name in sizes else len(data)
        yield from ((name, left) for left in range(len(data) - last, len(data)))
    for name in sizes:
        yield from ((name, left) for left in range(0, HEADER_BYTES + 1, 64))


def attack(log: Files, sizes: dict[str, int], zeros: bool, every: int, folder: Path) -> None:
    for name, left in list(ends(log, sizes))[::every]:
        check(log, sizes, {name: (left, zeros)}, folder)


ENDS = pytest.mark.parametrize("zeros", [False, True], ids=["the end is missing", "the end is zeros"])


@ENDS
def test_a_file_that_ends_at_any_of_some_bytes(log: Files, record_sizes: dict[str, int], zeros: bool, tmp_path: Path) -> None:
    attack(log, record_sizes, zeros, 211, tmp_path / "log")


@pytest.mark.slow
@ENDS
def test_a_file_that_ends_at_any_third_byte(log: Files, record_sizes: dict[str, int], zeros: bool, tmp_path: Path) -> None:
    attack(log, record_sizes, zeros, 11 if zeros else 3, tmp_path / "log")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_two_files_that_end_anywhere(log: Files, record_sizes: dict[str, int], tmp_path: Path, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(log)), min_size=2, max_size=2, unique=True))
    cuts = {name: (data.draw(st.integers(0, len(log[name]))), data.draw(st.booleans())) for name in names}
    check(log, record_sizes, cuts, tmp_path / "log")
