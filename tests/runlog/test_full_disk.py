"""A full disk: training goes on, what was recorded stays readable, and recording goes on when there is room again."""

from __future__ import annotations

import os
import resource
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runlog_records import layout_of, record
from runlog_training import make, step

import stabkit
from stabkit.runlog import RunWriter
from stabkit.runlog.append import LineFile


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("segment_steps", [4096, 4])
def test_recording_goes_on_when_there_is_room_again(small_disk: Path, segment_steps: int) -> None:
    writer = RunWriter(small_disk / "run", {}, segment_steps=segment_steps)
    number = writer.layout(0, layout_of("a", "b"))
    attempt, _ = writer.begin_attempt(0, 0)
    for number_of_step in range(1, 11):
        writer.write(0, record(number_of_step, attempt, number))
    fill(small_disk / "filler")
    refused = []
    number = writer.layout(0, layout_of("a", "b", "c"))
    for number_of_step in range(11, 111):
        try:
            writer.write(0, record(number_of_step, attempt, number, tensors=3))
        except OSError:
            refused.append(number_of_step)
        with pytest.raises(OSError, match="space"):
            writer.event("mark", note="x" * 5000)
    run = stabkit.load(small_disk / "run")
    assert refused and run.steps.tolist()[:10] == list(range(1, 11))
    assert not [note for note in run.notes if "damaged" in note]
    assert len(list((small_disk / "run" / "rank00000" / "optimizer0").iterdir())) < 12, "no litter"

    (small_disk / "filler").unlink()
    for number_of_step in range(111, 121):
        writer.write(0, record(number_of_step, attempt, number, tensors=3))
    (small_disk / "run" / "rank00000" / "events.jsonl").unlink()
    run = stabkit.load(small_disk / "run")
    assert [t.name for t in run.tensors] == ["a", "b", "c"], "run.json was written meanwhile"
    writer.close()
    run = stabkit.load(small_disk / "run")
    assert run.steps.tolist()[-10:] == list(range(111, 121))
    assert run.steps.tolist()[:10] == list(range(1, 11))
    assert [t.name for t in run.tensors] == ["a", "b", "c"]
    assert any("not in the log" in note for note in run.notes)


def test_a_run_that_begins_on_a_full_disk_is_still_an_attempt_of_its_own(tmp_path: Path) -> None:
    """The event of the attempt finds no room, and the optimizer has counted when there is some again."""

    def refuse(self: LineFile, value: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    for _ in range(2):
        writer = RunWriter(tmp_path, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LineFile, "append", refuse)
            number = writer.layout(0, layout_of("a", "b"))
            attempt, _ = writer.begin_attempt(0, 0)
        assert writer.begin_attempt(0, 1) == (attempt, 2)
        writer.write(0, record(2, attempt, number))
        writer.close()
    assert stabkit.load(tmp_path).attempts == 2


def test_training_goes_on(small_disk: Path) -> None:
    def train(watched: bool) -> list[torch.Tensor]:
        model, optimizer = make()
        if not watched:
            for _ in range(40):
                step(model, optimizer)
        else:
            watching = stabkit.watch(model, optimizer, small_disk / "run", tensorboard=False)
            with warnings.catch_warnings(record=True), watching:
                for done in range(1, 41):
                    step(model, optimizer)
                    if done == 10:
                        fill(small_disk / "filler")
        return list(model.parameters())

    for watched, plain in zip(train(True), train(False), strict=True):
        assert torch.equal(watched, plain)
    run = stabkit.load(small_disk / "run")
    assert len(run.steps) >= 10 and run.steps.tolist() == list(range(1, len(run.steps) + 1))
    assert not [note for note in run.notes if "damaged" in note]


def test_a_file_that_may_grow_no_further(tmp_path: Path) -> None:
    """A write that goes through in part is taken back: the limit falls into the middle of a record."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
            writer = RunWriter(tmp_path, {})
            number = writer.layout(0, layout_of("a", "b"))
            writer.begin_attempt(0, 0)
            refused = 0
            for number_of_step in range(1, 30):
                try:
                    writer.write(0, record(number_of_step, 0, number))
                except OSError:
                    refused += 1
            refused += 100 * any("incomplete" in note for note in stabkit.load(tmp_path).notes)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            writer.write(0, record(30, 0, number))
            writer.close()
            os._exit(0 if 10 < refused < 100 else 2)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run = stabkit.load(tmp_path)
    assert run.stream.tensor_steps.tolist()[-1] == 30 and run.steps.tolist()[-1] == 30
    assert run.steps.tolist()[:-1] == list(range(1, len(run.steps)))
    assert [note for note in run.notes if "not in the log" not in note] == []
