"""Reading less: the records of one tensor, and no file a second time that has not changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Group, Layout, RunLog, RunWriter, StepRecord, TensorInfo, load, segments
from stabkit.runlog.columns import LazyColumns
from tests.cases import load_case

A, B, C = (TensorInfo(name, (4,)) for name in "abc")


def write(path: Path, *layouts: tuple[TensorInfo, ...]) -> Path:
    """A log of five steps in each layout."""
    writer = RunWriter(path, {})
    attempt, step = writer.begin_attempt(0, 0)[0], 0
    rng = np.random.default_rng(0)
    for tensors in layouts:
        number = writer.layout(0, Layout(tensors))
        for _ in range(5):
            step += 1
            table = rng.random((len(tensors), len(TENSOR_COLUMNS)))
            writer.write(0, StepRecord(step, attempt, number, time=float(step), loss=1.0, groups=(Group(),), tensors=table))
    writer.close()
    return path


@pytest.mark.parametrize("layouts", [((A, B),), ((A, B), (B, A)), ((A, B), (C, B, A), (B,))])
def test_the_records_of_one_tensor_are_those_of_the_whole(tmp_path: Path, layouts: tuple[tuple[TensorInfo, ...], ...]) -> None:
    stream = load(write(tmp_path / "run", *layouts)).stream
    for index, tensor in enumerate(stream.tensors):
        part = stream.only(index)
        assert part.tensors == (tensor,)
        assert isinstance(part.columns, LazyColumns)
        for name in stream.columns:
            np.testing.assert_array_equal(part.columns[name], stream.columns[name][:, index : index + 1])
    assert not np.isnan(stream.only(0).columns["weight_sumsq"]).all()


def test_it_works_on_a_run_in_memory_and_on_a_prefix(tmp_path: Path) -> None:
    case = load_case("rate_jump").stream
    np.testing.assert_array_equal(case.only(3).columns["weight_sumsq"], case.columns["weight_sumsq"][:, 3:4])
    early = load(write(tmp_path / "run", (A, B))).stream.until(3)
    assert early.only(1).columns["weight_sumsq"].shape == (3, 1)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each check was about."""
    checks: list[int] = []
    check = segments.valid_records

    def watched(records: segments.Records) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        checks.append(len(records))
        return check(records)

    monkeypatch.setattr(segments, "valid_records", watched)
    return checks


def age(path: Path, seconds: float) -> None:
    for file in path.rglob("*.npy"):
        at = file.stat().st_mtime - seconds
        os.utime(file, (at, at))


def losses(run: RunLog) -> list[float]:
    return list(run.series("loss").values)


def test_a_file_that_has_not_changed_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run", (A, B))
    age(path, 10)
    first = load(path)
    checks = counted(monkeypatch)
    again = load(path)
    assert not sum(checks)
    assert losses(again) == losses(first)
    np.testing.assert_array_equal(again.stream.columns["weight_sumsq"], first.stream.columns["weight_sumsq"])


def test_what_was_written_lately_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run", (A, B))
    load(path)
    checks = counted(monkeypatch)
    load(path)
    assert sum(checks) == 10, "five step records and five of tensors"


def test_damage_after_the_check_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "run", (A, B))
    age(path, 10)
    assert len(losses(load(path))) == 5
    (file,) = path.rglob("steps-*.npy")
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)
    assert len(losses(load(path))) == 4
