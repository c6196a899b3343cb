"""A long run's log stays small: old tensor records are thinned, and what stands out stays whole with what surrounds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runlog_records import layout_of, record

import stabkit
from stabkit.metric import TENSOR_COLUMNS
from stabkit.report.info import facts
from stabkit.runlog import RunWriter, StepRecord, thinning
from stabkit.runlog.format import tensor_dtype

PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
TENSORS = 4
SPIKES = {1100: 2, 1800: 0}
"""Steps, and the tensor whose gradient is then a hundred times as large."""


def usual(step: int, random: np.random.Generator) -> StepRecord:
    """A step of a calm run."""
    made = record(step, tensors=TENSORS, loss=4.0 + 0.05 * random.normal(), grad_norm=1.0 + 0.1 * random.random())
    made.tensors = np.exp(0.2 * random.normal(size=(TENSORS, len(TENSOR_COLUMNS))))
    made.tensors[:, [PLACE["grad_nonfinite"], PLACE["weight_nonfinite"]]] = 0.0
    return made


def run(folder: Path, steps: int, limit: int, **about: Any) -> RunWriter:
    writer = RunWriter(folder, {"every": 1}, segment_steps=128, limit=limit)
    layout = writer.layout(0, layout_of(*(f"t{i}" for i in range(TENSORS))))
    writer.begin_attempt(0, 0)
    random = np.random.default_rng(0)
    for step in range(1, steps + 1):
        made = usual(step, random)
        made.layout = layout
        if step in SPIKES and made.tensors is not None:
            made.tensors[SPIKES[step], PLACE["grad_used_sumsq"]] *= 1e4
        if step == 700:
            made.loss = 40.0
        if step == 900:
            writer.event("mark", step=step, note="lr halved")
        writer.write(0, made)
        if step % 128 == 1:  # the thread has its turn
            writer._thinners[0].finish()
    return writer


RECORD = tensor_dtype(TENSORS).itemsize
STEPS, LIMIT = 2600, 900 * RECORD


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinned") / "run"
    run(folder, STEPS, LIMIT).close()
    return folder


def test_the_tensor_records_stay_under_their_limit(thinned: Path) -> None:
    held = sum(path.stat().st_size for path in thinned.rglob("tensors-*.npy"))
    assert held <= LIMIT + 2 * 128 * RECORD + 2 * 4096


def test_every_step_record_is_there(thinned: Path) -> None:
    log = stabkit.load(thinned)
    assert log.steps.tolist() == list(range(1, STEPS + 1))
    assert not log.notes


def test_the_latest_steps_are_whole(thinned: Path) -> None:
    measured = stabkit.load(thinned).stream.tensor_steps
    assert set(range(STEPS - 127, STEPS + 1)) <= set(measured.tolist())


@pytest.mark.parametrize("step", [*SPIKES, 700, 900])
def test_what_stands_out_stays_with_what_surrounds_it(step: int, thinned: Path) -> None:
    measured = stabkit.load(thinned).stream.tensor_steps
    assert set(range(step - 3, step + 4)) <= set(measured.tolist())


def test_older_steps_are_thinner_and_none_is_made_up(thinned: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", STEPS, 1 << 40).close()
    whole, thin = stabkit.load(tmp_path / "whole").stream, stabkit.load(thinned).stream
    assert whole.tensor_steps.tolist() == list(range(1, STEPS + 1))
    rows = np.searchsorted(whole.tensor_steps, thin.tensor_steps)
    for name in ("grad_used_sumsq", "weight_sumsq"):
        assert np.array_equal(whole.columns[name][rows], thin.columns[name])
    gaps = np.diff(thin.tensor_steps)
    assert 4 <= gaps.max() <= 64 and gaps[-128:].max() == 1


def test_info_tells(thinned: Path) -> None:
    events = [event for event in stabkit.load(thinned).events if event["event"] == "thinned"]
    assert len({event["stride"] for event in events}) == len(events) >= 1
    assert facts(stabkit.load(thinned))["thinned"].startswith("of old steps one in")


def test_a_run_that_goes_on_thins_what_an_earlier_process_wrote(tmp_path: Path) -> None:
    run(tmp_path / "run", 1500, 1 << 40).close()
    before = sum(path.stat().st_size for path in (tmp_path / "run").rglob("tensors-*.npy"))
    writer = RunWriter(tmp_path / "run", {}, segment_steps=128, limit=LIMIT)
    layout = writer.layout(0, layout_of(*(f"t{i}" for i in range(TENSORS))))
    writer.begin_attempt(0, 1500)
    random = np.random.default_rng(1)
    for step in range(1501, 1640):
        made = usual(step, random)
        made.layout = layout
        writer.write(0, made)
    writer.close()
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("tensors-*.npy")) < 0.7 * before


def test_whoever_is_killed_while_replacing_has_the_old_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the replacement: before the draft is whole, and between the draft and its renaming."""

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    class Killed(thinning.Thinner):
        def rolled(self) -> None:
            with pytest.raises(RuntimeError):
                self._thin()

    for name in ("fsync", "replace"):
        folder = tmp_path / name
        run(folder, 1000, 1 << 40).close()
        whole = stabkit.load(folder).stream.tensor_steps.tolist()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, killed)
            Killed(folder / "rank00000" / "optimizer0", 200 * RECORD, list, lambda stride, until: None).rolled()
        assert list(folder.rglob(".tensors-*.thin"))
        again = stabkit.load(folder)
        assert again.stream.tensor_steps.tolist() == whole and not again.notes
        thinner = thinning.Thinner(folder / "rank00000" / "optimizer0", 200 * RECORD, list, lambda stride, until: None)
        thinner.rolled()
        thinner.finish()
        assert not list(folder.rglob(".tensors-*.thin"))
        assert len(stabkit.load(folder).stream.tensor_steps) < len(whole)


def test_a_damaged_segment_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "run", 600, 1 << 40).close()
    folder = tmp_path / "run" / "rank00000" / "optimizer0"
    first = folder / "tensors-000000.npy"
    content = bytearray(first.read_bytes())
    content[100] ^= 1  # of the header
    first.write_bytes(content)
    thinner = thinning.Thinner(folder, 0, list, lambda stride, until: None)
    thinner.rolled()
    thinner.finish()
    assert first.read_bytes() == bytes(content)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is asked of Linux")
def test_one_segment_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Old segments are 192 MiB in all, in the memory of the process that trains."""
    run(tmp_path / "run", 1500, 1 << 40).close()
    mapped: list[int] = []

    def look(*_: Any) -> None:
        mapped.append(Path("/proc/self/maps").read_text().count(f"{tmp_path}/run/rank00000/optimizer0/tensors-"))

    thinner = thinning.Thinner(tmp_path / "run" / "rank00000" / "optimizer0", LIMIT // 3, list, look)
    thinner.rolled()
    thinner.finish()
    assert mapped and max(mapped) <= 1
