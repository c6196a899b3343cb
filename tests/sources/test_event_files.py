"""TensorBoard's event files, written by the real writers and read beside TensorBoard's own reader."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stabkit
from stabkit.errors import StabkitError, UsageError

SummaryWriter = pytest.importorskip("torch.utils.tensorboard", reason="needs torch and tensorboard").SummaryWriter


def record_run(folder: Path, steps: range, *, new_style: bool = False, tag: str = "train/loss") -> Path:
    """A run of losses 5 - step / 100, as torch's writer records it."""
    with SummaryWriter(folder) as writer:
        for step in steps:
            writer.add_scalar(tag, 5 - step / 100, step, new_style=new_style)
            if step % 10 == 0:
                writer.add_scalar("val/loss", 6.0, step, new_style=new_style)
    return folder


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("events*")
    return file


@pytest.mark.parametrize("new_style", [False, True], ids=["simple value", "tensor"])
@pytest.mark.parametrize("as_file", [False, True], ids=["directory", "file"])
def test_both_forms_of_scalars(tmp_path: Path, new_style: bool, as_file: bool) -> None:
    folder = record_run(tmp_path, range(50), new_style=new_style)
    run = stabkit.load(only_file(folder) if as_file else folder)
    assert run.source == "TensorBoard"
    assert run.steps.tolist() == list(range(50))
    np.testing.assert_allclose(run.series("loss").values, 5 - np.arange(50) / 100, rtol=1e-6)
    assert run.series("val/loss").steps.tolist() == [0, 10, 20, 30, 40]
    assert np.all(np.diff(run.series("time").values) >= 0) and run.series("time").values[0] > 1.7e9
    assert not run.notes and not stabkit.analyze(run).findings


def test_pictures_histograms_and_text_are_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="torch draws pictures with Pillow")
    with SummaryWriter(tmp_path) as writer:
        for step in range(5):
            writer.add_scalar("loss", 1.0, step)
            writer.add_histogram("gradients/a.weight", np.arange(9.0), step)
            writer.add_text("note", "hello", step)
            writer.add_image("picture", np.zeros((3, 8, 8), np.float32), step)
    run = stabkit.load(tmp_path)
    assert run.steps.tolist() == [0, 1, 2, 3, 4] and not run.scalars


def test_nan_is_a_value(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step in range(60):
            writer.add_scalar("loss", math.nan if step >= 30 else 1.0, step)
    assert stabkit.analyze(stabkit.load(tmp_path)).outcome("SK301").findings[0].first_step == 30


def test_event_files_of_one_directory_are_one_run_and_a_resume_replaces_what_it_repeats(tmp_path: Path) -> None:
    record_run(tmp_path, range(60))
    first = only_file(tmp_path)
    moved = first.with_name(first.name.replace("tfevents.", "tfevents.1"))  # as if begun later; the names say which is first
    first.rename(moved)
    with SummaryWriter(tmp_path) as writer:
        for step in range(40, 80):
            writer.add_scalar("train/loss", 100.0 + step, step)
    second = next(file for file in tmp_path.glob("events*") if file != moved)
    second.rename(second.with_name(second.name.replace("tfevents.", "tfevents.9")))
    run = stabkit.load(tmp_path)
    assert run.steps.tolist() == list(range(80)) and run.attempts == 1
    assert run.series("loss").values[40:].tolist() == [100.0 + step for step in range(40, 80)]
    assert any("resumed at step 40: 20 rows up to step 79 were replaced" in note for note in run.notes)


def test_directories_of_event_files_are_a_run_each(tmp_path: Path) -> None:
    record_run(tmp_path / "a", range(30))
    record_run(tmp_path / "b" / "c", range(30))
    with pytest.raises(UsageError, match="holds several runs"):
        stabkit.load(tmp_path)
    assert len(stabkit.sources.runs_in(str(tmp_path))) == 2


@pytest.mark.parametrize("at", [12, 40, 300, 700, -9])
@pytest.mark.parametrize("size", [1, 24, 150])
def test_damage_costs_the_records_it_hits_and_is_told(tmp_path: Path, at: int, size: int) -> None:
    file = only_file(record_run(tmp_path, range(100), tag="loss"))
    data = bytearray(file.read_bytes())
    at %= len(data)
    for index in range(at, min(at + size, len(data))):
        data[index] ^= 0x5A
    file.write_bytes(data)
    run = stabkit.load(file)
    whole = 5 - run.steps / 100
    np.testing.assert_allclose(run.series("loss").values[run.stream.step_values["loss_reduction"] > 0],
                               whole[run.stream.step_values["loss_reduction"] > 0], rtol=1e-6)  # fmt: skip
    assert len(run.steps) >= 100 - 3 - size // 30
    assert any("damaged in" in note or "incomplete" in note for note in run.notes)


@pytest.mark.parametrize("cut", [3, 20, 45])
def test_a_file_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    file = only_file(record_run(tmp_path, range(100), tag="loss"))
    file.write_bytes(file.read_bytes()[:-cut])
    run = stabkit.load(file)
    assert len(run.steps) >= 98 and run.steps.tolist() == list(range(len(run.steps)))
    assert any("the last record is incomplete" in note for note in run.notes)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 2000))
def test_no_garbage_raises_anything_but_ours(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("noise")
    file = only_file(record_run(folder, range(20), tag="loss"))
    data = file.read_bytes()
    file.write_bytes(data[: at % len(data)] + noise + data[at % len(data) :])
    try:
        stabkit.load(file)
    except StabkitError:
        pass


def test_a_huge_length_with_a_right_checksum_is_passed_over(tmp_path: Path) -> None:
    from stabkit.sources.frames import _masked

    file = only_file(record_run(tmp_path, range(20), tag="loss"))
    length = struct.pack("<Q", 2**50)
    file.write_bytes(file.read_bytes() + length + _masked(length) + b"x" * 1000)
    assert len(stabkit.load(file).steps) == 20


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(width=32)), min_size=50, max_size=80))
def test_any_order_of_steps_equals_tensorboards_own_reading(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[int, float]]
) -> None:
    """The oracle: TensorBoard's loader gives the events in order; of one step the last counts."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    folder = tmp_path_factory.mktemp("order")
    with SummaryWriter(folder) as writer:
        for step, value in points:
            writer.add_scalar("loss", value, step)
    if np.sum(np.diff([step for step, _ in points]) < 0) <= len(points) / 9:
        return  # few falls are resumes
    expected: dict[int, float] = {}
    for event in EventFileLoader(str(only_file(folder))).Load():
        for value in event.summary.value:
            expected[event.step] = value.tensor.float_val[0]
    run = stabkit.load(folder)
    assert run.steps.tolist() == sorted(expected)
    np.testing.assert_array_equal(run.series("loss").values, [expected[step] for step in sorted(expected)])
