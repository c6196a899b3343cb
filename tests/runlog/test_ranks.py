"""Logs of several ranks read as one: shards add up, copies do not, and what is missing is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runlog_records import record

import stabkit
from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Layout, RunLog, RunWriter, TensorInfo
from stabkit.runlog.claim import claim_directory

PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
NAMES = ("a", "b", "c")


def columns_of(step: int, shard: int, shards: int) -> np.ndarray[Any, Any]:
    """[tensors, columns] of one shard: its part of numbers that depend on step, tensor and column."""
    rng = np.random.default_rng(step)
    elements = rng.uniform(0.1, 1, (len(NAMES), len(TENSOR_COLUMNS), 4 * shards))
    own = elements[..., 4 * shard : 4 * shard + 4]
    return np.stack([reduced(own[:, i], column.merge) for i, column in enumerate(TENSOR_COLUMNS)], axis=1)


def reduced(elements: np.ndarray[Any, Any], rule: str) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = {"sum": np.sum, "max": np.max, "min": np.min}[rule](elements, axis=-1)
    return found


def write_rank(
    run: Path, rank: int, steps: Iterable[int], replica: int, shards: int, shard: int, count: int = 0, close: bool = True,
    names: tuple[str, ...] = NAMES, **about: Any,
) -> RunWriter:  # fmt: skip
    """What one process records; a sharded one knows no norm of the whole step."""
    writer = RunWriter(run, {"world_size": about.pop("world", 2)}, rank)
    infos = tuple(TensorInfo(name, (4 * shards,), replica=replica, shards=shards) for name in names)
    number = writer.layout(0, Layout(infos, 1, "AdamW"))
    attempt, _ = writer.begin_attempt(0, count)
    for step in steps:
        one = record(step, attempt, number, tensors=None, **{"loss": 10.0 * rank + step, "time": time.time(), **about})
        one.tensors = columns_of(step, shard, shards)[: len(names)]
        if shards == 1:
            one.weight_norm = float(np.sqrt(one.tensors[:, PLACE["weight_sumsq"]].sum()))
        writer.write(0, one)
    if close:
        writer.close()
    return writer


def same_columns(run: RunLog, steps: list[int], shards: int) -> None:
    for column in TENSOR_COLUMNS:
        want = np.stack([whole(step, shards)[:, PLACE[column.name]] for step in steps])
        np.testing.assert_allclose(run.stream.columns[column.name], want, rtol=1e-12, err_msg=column.name)


def whole(step: int, shards: int) -> np.ndarray[Any, Any]:
    parts = np.stack([columns_of(step, shard, shards) for shard in range(shards)], axis=-1)
    return np.stack([reduced(parts[:, i], column.merge) for i, column in enumerate(TENSOR_COLUMNS)], axis=1)


def test_shards_are_merged_by_each_columns_own_rule(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 6), 0, 2, rank)
    run = stabkit.load(tmp_path)
    assert run.notes == () and run.steps.tolist() == [1, 2, 3, 4, 5]
    same_columns(run, [1, 2, 3, 4, 5], 2)
    for step in range(1, 6):
        want = np.sqrt(whole(step, 2)[:, PLACE["grad_used_sumsq"]].sum())
        assert run.series("grad_norm_used").values[step - 1] == pytest.approx(want)
    assert [t.shape for t in run.tensors] == [(8,)] * 3
    assert run.series("loss").values.tolist() == [5.0 + step for step in range(1, 6)]


def test_copies_are_not_added_up(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 4), rank, 1, 0)
    run = stabkit.load(tmp_path)
    same_columns(run, [1, 2, 3], 1)
    assert run.series("weight_norm").values == pytest.approx(run.by_rank("weight_norm").series("rank0").values)


def test_of_two_sharded_copies_one_counts(tmp_path: Path) -> None:
    for rank in range(4):
        write_rank(tmp_path, rank, range(1, 4), 2 * (rank // 2), 2, rank % 2, world=4)
    same_columns(stabkit.load(tmp_path), [1, 2, 3], 2)


def test_where_a_copy_has_lost_a_shard_another_serves(tmp_path: Path) -> None:
    for rank, last in enumerate((5, 2, 5, 5)):
        write_rank(tmp_path, rank, range(1, last + 1), 2 * (rank // 2), 2, rank % 2, world=4)
    run = stabkit.load(tmp_path)
    same_columns(run, [1, 2, 3, 4, 5], 2)
    assert run.notes == ("rank 1 ended at step 2, others went on to step 5",)


def test_a_dead_ranks_shards_are_missing_from_then_on_and_told(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, range(1, 8), 0, 2, 0)
    write_rank(tmp_path, 1, range(1, 5), 0, 2, 1, close=False)
    run = stabkit.load(tmp_path)
    assert run.steps.tolist() == list(range(1, 8))
    norms = run.series("weight_norm").values
    assert np.isfinite(norms[:4]).all() and np.isnan(norms[4:]).all()
    assert run.series("loss").values.tolist() == [6.0, 7.0, 8.0, 9.0, 5.0, 6.0, 7.0]
    assert run.notes[0] == "rank 1 ended at step 4, others went on to step 7"
    assert run.notes[1].startswith("steps 5 to 7: not every shard of a and 2 more tensors")
    alone = run.by_rank("loss")
    assert alone.tensors == ("rank0", "rank1")
    np.testing.assert_array_equal(alone.series("rank1").values, [11.0, 12, 13, 14, np.nan, np.nan, np.nan])


def test_a_killed_rank_is_told_also_where_it_was_as_far_as_the_others(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, range(1, 4), 0, 1, 0)
    killed = write_rank(tmp_path, 1, range(1, 4), 1, 1, 0, close=False)
    assert stabkit.load(tmp_path).notes == (
        "rank 1 ended after step 3 without closing its log: was it killed? Or it still runs",
    )
    killed.close()
    assert stabkit.load(tmp_path).notes == ()


def test_a_live_run_has_nothing_to_note(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, range(1, 5), 0, 1, 0, close=False)
    write_rank(tmp_path, 1, range(1, 4), 1, 1, 0, close=False)
    assert stabkit.load(tmp_path).notes == ()


def test_a_rank_without_a_log_is_missed(tmp_path: Path) -> None:
    write_rank(tmp_path, 1, range(1, 4), 0, 2, 1)
    run = stabkit.load(tmp_path)
    assert "there is no log of rank 0: the run had 2 processes" in run.notes
    assert run.series("loss").values.tolist() == [11.0, 12.0, 13.0]
    assert not run.has("weight_norm"), "of one shard no true norm can be told"


def test_a_damaged_record_of_one_rank_costs_that_step_its_norms_only(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 6), 0, 2, rank)
    path = tmp_path / "rank00001" / "optimizer0" / "tensors-000000.npy"
    data = bytearray(path.read_bytes())
    data[4096 + (len(data) - 4096) * 5 // 10] ^= 1
    path.write_bytes(data)
    run = stabkit.load(tmp_path)
    norms = run.series("weight_norm").values
    assert np.isnan(norms).tolist() == [False, False, True, False, False]
    assert any(note.startswith("rank 1: ") for note in run.notes) and any("step 3: not every" in note for note in run.notes)


def test_a_nan_on_one_rank_is_a_nan_of_the_whole(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, range(1, 4), 0, 1, 0)
    write_rank(tmp_path, 1, range(1, 4), 1, 1, 0, loss=float("nan"))
    run = stabkit.load(tmp_path)
    assert np.isnan(run.series("loss").values).all() and run.has("loss")
    assert np.isfinite(run.by_rank("loss").series("rank0").values).all()


def test_ranks_that_hold_other_tensors_have_one_norm_together(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, range(1, 3), 0, 1, 0, names=("a", "b"))
    write_rank(tmp_path, 1, range(1, 3), 1, 1, 0, names=("c",))
    run = stabkit.load(tmp_path)
    assert [t.name for t in run.tensors] == ["a", "b", "c"]
    squares = run.stream.columns["weight_sumsq"].sum(axis=1)
    assert run.series("weight_norm").values == pytest.approx(np.sqrt(squares))


def test_a_run_resumed_on_more_processes_is_read_in_both_parts(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 4), 0, 2, rank)
    for rank in range(4):
        write_rank(tmp_path, rank, range(4, 6), 0, 4, rank, count=3, world=4)
    run = stabkit.load(tmp_path)
    assert run.steps.tolist() == [1, 2, 3, 4, 5] and run.attempts == 1
    want = [np.sqrt(whole(step, 2 if step < 4 else 4)[:, PLACE["weight_sumsq"]].sum()) for step in range(1, 6)]
    assert run.series("weight_norm").values == pytest.approx(want)


def test_a_rank_that_died_before_its_first_step_does_not_fall_behind(tmp_path: Path) -> None:
    """Its next attempt is the others' next too."""
    write_rank(tmp_path, 0, range(1, 4), 0, 1, 0, time=1e9)
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 6), rank, 1, 0)
    run = stabkit.load(tmp_path)
    assert run.attempts == 2 and sorted(run.ranks) == [0, 1]
    assert run.ranks[1][0].steps.tolist() == [1, 2, 3, 4, 5]


def test_one_ranks_directory_can_be_read_alone(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 4), rank, 1, 0)
    alone = stabkit.load(tmp_path / "rank00001")
    assert alone.series("loss").values.tolist() == [11.0, 12.0, 13.0] and not alone.ranks


def test_every_prefix_holds_every_ranks_prefix(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, range(1, 6), 0, 2, rank)
    run = stabkit.load(tmp_path)
    early = run.until(3)
    assert early.by_rank("loss").values.shape == (3, 2)
    np.testing.assert_array_equal(early.series("weight_norm").values, run.series("weight_norm").values[:3])


def test_the_ranks_of_a_job_share_a_directory_and_another_job_gets_its_own(tmp_path: Path) -> None:
    """Also where the other job has more ranks: those find their number free, but not rank 0's."""
    locks = []
    for job, ranks in (("one", (1, 0)), ("other", (0, 1, 2))):
        found = []
        for rank in ranks:
            path, lock = claim_directory(tmp_path / "run", rank, job)
            found.append(path.name)
            locks.append(lock)
        assert set(found) == ({"run"} if job == "one" else {"run.2"})
    for lock in locks:
        assert lock is not None
        os.close(lock)
    path, lock = claim_directory(tmp_path / "run", 1, "third")
    assert path.name == "run" and lock is not None, "what is left of a job that is over holds nobody up"
    os.close(lock)
