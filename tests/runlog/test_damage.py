"""Whatever happens to a log's files, what is left is read bit for bit, and what is lost is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runlog_training import make, small_segments, step

import stabkit
from stabkit.runlog import RunLog
from stabkit.runlog.format import HEADER_BYTES

SEGMENT_STEPS = 8


@dataclass(repr=False)
class Original:
    """A log before the damage."""

    files: dict[str, bytes]
    run: RunLog

    def write(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        for name, data in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Two attempts of a real training; in the second, a parameter group is added and numbers are logged."""
    logdir = tmp_path_factory.mktemp("original") / "run"
    with small_segments(SEGMENT_STEPS):
        model, optimizer = make()
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            for _ in range(5):
                step(model, optimizer)
        model, optimizer = make(seed=1)
        with stabkit.watch(model, optimizer, logdir, tensorboard=False) as watching:
            for done in range(1, 28):
                step(model, optimizer)
                watching.log(val_loss=1 / done)
                if done == 11:
                    optimizer.add_param_group({"params": [make(seed=2)[0][0].bias], "lr": 1e-3})
                    watching.mark("a group more")
    files = {str(p.relative_to(logdir)): p.read_bytes() for p in logdir.rglob("*") if p.is_file() and p.name != ".lock"}
    run = stabkit.load(logdir)
    assert run.attempts == 2 and run.steps.tolist() == list(range(1, 28))
    assert run.notes == ("2 attempts in this directory; this is the last one",)
    return Original(files, run)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, float, bytes | None]:
    """(what the file's name holds, where in it from 0 to 1, what is xored into it there; None: it is cut there)."""
    name = draw(st.sampled_from(["run.json", "events.jsonl", "scalars.jsonl", "steps", "tensors"]))
    short, long = (st.binary(min_size=low, max_size=high).filter(any) for low, high in ((1, 3), (200, 3000)))
    mask = draw(st.none() | short | long)
    return name, draw(st.floats(0, 1, exclude_max=True)), mask


def apply(original: Original, directory: Path, damage: tuple[str, float, bytes | None], pick: float) -> tuple[str, int, int]:
    """Damage a copy of the log. Returns the file's name, and begin and end of the bytes that are not what they were."""
    kind, where, mask = damage
    names = sorted(name for name in original.files if kind in name.rpartition("/")[2])
    name = names[int(pick * len(names))]
    data = original.files[name]
    at = int(where * len(data))
    if mask is None:
        (directory / name).write_bytes(data[:at])
        return name, at, len(data)
    damaged = np.frombuffer(data, np.uint8).copy()
    mask = mask[: len(data) - at]
    damaged[at : at + len(mask)] ^= np.frombuffer(mask, np.uint8)
    (directory / name).write_bytes(damaged.tobytes())
    changed = np.flatnonzero(damaged != np.frombuffer(data, np.uint8))
    return (name, int(changed[0]), int(changed[-1]) + 1) if len(changed) else (name, 0, 0)


def untouched(original: Original, kind: str, name: str, begin: int, end: int, cut: bool) -> Iterator[int]:
    """The steps of the last attempt whose records of a kind the damage did not reach."""
    import io

    for file, data in original.files.items():
        if not file.rpartition("/")[2].startswith(kind):
            continue
        records = np.load(io.BytesIO(data))
        for i, record in enumerate(records):
            start = HEADER_BYTES + i * records.dtype.itemsize
            hit = file == name and start < end and start + records.dtype.itemsize > begin
            unreachable = file == name and cut and begin <= HEADER_BYTES
            # Without its header a segment is read by the checksum of its first record, or like the segments before it.
            blind = file == name and not cut and begin < HEADER_BYTES and end > HEADER_BYTES
            if record["attempt"] == 1 and not (hit or unreachable or blind):
                yield int(record["step"])


def same(run: RunLog, original: RunLog) -> None:
    """Every record in `run` is bit for bit one of the original's."""
    mine, theirs = run.stream, original.stream
    at = np.searchsorted(theirs.steps, mine.steps)
    assert np.array_equal(theirs.steps[at], mine.steps)
    for name, values in mine.step_values.items():
        assert values.tobytes() == theirs.step_values[name][at].tobytes()
    for name, values in mine.group_values.items():  # without the later records there are fewer
        assert values.tobytes() == theirs.group_values[name][at, : values.shape[1]].tobytes()
    at = np.searchsorted(theirs.tensor_steps, mine.tensor_steps)
    assert np.array_equal(theirs.tensor_steps[at], mine.tensor_steps)
    for name, values in mine.columns.items():
        assert values.tobytes() == theirs.columns[name][at, : len(run.tensors)].tobytes()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(damage=damages(), pick=st.floats(0, 1, exclude_max=True))
def test_one_damaged_file_costs_what_it_hit_and_no_more(
    original: Original, tmp_path: Path, damage: tuple[str, float, bytes | None], pick: float
) -> None:
    directory = tmp_path / "run"
    original.write(directory)
    name, begin, end = apply(original, directory, damage, pick)
    run = stabkit.load(directory)
    if begin == end:
        return
    same(run, original.run)
    cut = damage[2] is None
    lost_first_attempt = len(original.run.notes) if run.attempts == 2 else 0
    assert len(run.notes) > lost_first_attempt, "lost in silence"
    assert set(untouched(original, "steps", name, begin, end, cut)) <= set(run.steps.tolist())
    assert set(untouched(original, "tensors", name, begin, end, cut)) <= set(run.stream.tensor_steps.tolist())
    assert [t.name for t in run.tensors] == [t.name for t in original.run.tensors][: len(run.tensors)]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)), cut=st.booleans())
def test_run_json_and_events_damaged_together(
    original: Original, tmp_path: Path, where: tuple[float, float], cut: bool
) -> None:
    directory = tmp_path / "run"
    original.write(directory)
    for name, at in zip(("run.json", "events.jsonl"), where, strict=True):
        apply(original, directory, (name, at, None if cut else b"\xff"), 0)
    run = stabkit.load(directory)
    assert run.notes
    assert np.array_equal(run.steps, original.run.steps)
    for metric in ("loss", "grad_norm", "lr"):
        assert run.series(metric).values.tobytes() == original.run.series(metric).values.tobytes()
    assert np.array_equal(run.stream.tensor_steps, original.run.stream.tensor_steps)


def test_without_any_description_the_tensors_are_numbered(original: Original, tmp_path: Path) -> None:
    original.write(tmp_path)
    (tmp_path / "rank00000" / "run.json").write_bytes(b"\0" * 100)
    (tmp_path / "rank00000" / "events.jsonl").write_bytes(b"\0" * 100)
    run = stabkit.load(tmp_path)
    same(run, original.run)
    assert [t.name for t in run.tensors] == [f"tensor{i}" for i in range(7)]
    assert any("tensor0" in note for note in run.notes) and any("run.json is damaged" in note for note in run.notes)
    assert np.array_equal(run.table("grad_norm").values, original.run.table("grad_norm").values, equal_nan=True)


def test_what_run_json_said_is_recovered_from_the_events(original: Original, tmp_path: Path) -> None:
    original.write(tmp_path)
    (tmp_path / "rank00000" / "run.json").unlink()
    run = stabkit.load(tmp_path)
    assert run.tensors == original.run.tensors
    assert run.facts == original.run.facts
    assert run.notes[0] == "run.json is missing; what it said was recovered from events.jsonl"


def test_a_flipped_step_number_is_caught(write: Callable[..., Path]) -> None:
    logdir = write(range(1, 6))
    path = logdir / "rank00000" / "optimizer0" / "steps-000000.npy"
    data = bytearray(path.read_bytes())
    size = np.load(path).dtype.itemsize
    data[HEADER_BYTES + 2 * size] ^= 8  # step 3 becomes 11
    path.write_bytes(data)
    run = stabkit.load(logdir)
    assert run.steps.tolist() == [1, 2, 4, 5]
    assert run.stream.tensor_steps.tolist() == [1, 2, 3, 4, 5]
    assert run.notes == (
        "optimizer0/steps-000000.npy: 1 of 5 records damaged and left out",
        "1 step after step 2 is not in the log",
    )


def test_a_hit_newline_costs_neither_line(original: Original, tmp_path: Path) -> None:
    original.write(tmp_path)
    path = tmp_path / "rank00000" / "events.jsonl"
    data = bytearray(path.read_bytes())
    data[data.index(b"\n")] = 0
    path.write_bytes(data)
    run = stabkit.load(tmp_path)
    assert run.events == original.run.events
    assert "events.jsonl: 1 damaged line" in run.notes


def test_a_deleted_segment_shows_as_missing_steps(original: Original, tmp_path: Path) -> None:
    original.write(tmp_path)
    for segment in (tmp_path / "rank00000" / "optimizer0").glob("steps-*.npy"):
        if 15 in np.load(segment)["step"]:
            segment.unlink()
    run = stabkit.load(tmp_path)
    assert 15 not in run.steps
    assert any("not in the log" in note for note in run.notes)


def test_a_lost_newline_at_the_end_of_run_json_is_told(original: Original, tmp_path: Path) -> None:
    original.write(tmp_path)
    path = tmp_path / "rank00000" / "run.json"
    path.write_bytes(path.read_bytes()[:-1])
    run = stabkit.load(tmp_path)
    assert run.tensors == original.run.tensors
    assert run.notes[0] == "run.json is damaged at its end; nothing in it is lost"


def test_header_and_first_record_damaged_together(original: Original, tmp_path: Path) -> None:
    """The record type is then that of another segment, or nothing is read and this is said."""
    original.write(tmp_path)
    damaged = sorted((tmp_path / "rank00000" / "optimizer0").glob("tensors-*.npy"))[1]
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    data[HEADER_BYTES + 100] ^= 1
    damaged.write_bytes(data)
    run = stabkit.load(tmp_path)
    same(run, original.run)
    assert len(run.stream.tensor_steps) == len(original.run.stream.tensor_steps) - 1


def test_cuts_between_records_and_lines_are_told(original: Original, tmp_path: Path) -> None:
    """Nothing is torn there: only what was promised elsewhere shows that something is gone."""
    original.write(tmp_path)
    rank = tmp_path / "rank00000"
    segment = sorted((rank / "optimizer0").glob("steps-*.npy"))[-1]
    size = np.load(segment).dtype.itemsize
    segment.write_bytes(segment.read_bytes()[: -2 * size])
    for name in ("events.jsonl", "scalars.jsonl"):
        lines = (rank / name).read_bytes().splitlines(keepends=True)
        (rank / name).write_bytes(b"".join(lines[:-1]))
    run = stabkit.load(tmp_path)
    assert run.steps.tolist() == list(range(1, 26))
    assert any(f"{segment.name}: 2 of " in note and "missing at the end" in note for note in run.notes)
    for name in ("events.jsonl", "scalars.jsonl"):
        assert any(note.startswith(name) and "bytes are missing at the end" in note for note in run.notes)


def test_a_line_that_was_cut_short_does_not_spoil_the_next(write: Callable[..., Path]) -> None:
    logdir = write(range(1, 3))
    events = logdir / "rank00000" / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-20])
    known = len(stabkit.load(logdir).events)
    run = stabkit.load(write(range(3, 5), count=2))
    assert len(run.events) == known + 3, "the opening, the resume and the closing"
    assert "events.jsonl: 1 damaged line" in run.notes
