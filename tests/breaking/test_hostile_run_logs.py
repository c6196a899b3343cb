"""Run logs that someone made on purpose, every checksum right: what fuzzing broke the reader with, each by its idea."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz.mutate import Files
from benchmarks.fuzz.targets import TARGETS, ask, bounded, put
from stabkit.runlog.format import HEADER_BYTES
from stabkit.runlog.lines import checksum_line, decode_line

RANK = "rank00000/"
STEPS, TENSORS = RANK + "optimizer0/steps-000000.npy", RANK + "optimizer0/tensors-000000.npy"


@pytest.fixture
def log(tmp_path: Path) -> Files:
    return TARGETS["runlog"](tmp_path / "seeds")[0]


def header(data: bytes, old: bytes, new: bytes) -> bytes:
    """Another header, under a right checksum."""
    comment = b"#" + data[: HEADER_BYTES - 9].rpartition(b"#")[2]
    text = data[: HEADER_BYTES - 9 - len(comment)].replace(old, new)
    head = text.ljust(HEADER_BYTES)[: HEADER_BYTES - 9 - len(comment)] + comment
    return head + b"%08x\n" % zlib.crc32(head) + data[HEADER_BYTES:]


def lines(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Each line changed, under a right checksum."""
    changed = []
    for line in data.splitlines():
        value = decode_line(line)
        assert value is not None
        change(value)
        changed.append(checksum_line(value))
    return b"".join(changed)


@pytest.mark.parametrize("old, new", [
    (b"<f8", b"|O"), (b"<f8", b"<U9"), (b"<f8", b"V0"), (b"'descr'", b"'descx'"), (b"{", b"[" * 300), (b"'crc'", b"'crx'"),
    (b"'loss'", b"'time'"), (b"'step'", b"'stop'"), (b"<i8", b"<f8"), (b"(", b"["),
])  # fmt: skip
@pytest.mark.parametrize("name", [STEPS, TENSORS])
def test_a_header_that_describes_no_record_of_ours(log: Files, name: str, old: bytes, new: bytes, tmp_path: Path) -> None:
    with bounded():
        ask(put(log | {name: header(log[name], old, new)}, tmp_path / "log"))


def test_steps_in_the_place_of_tensors(log: Files, tmp_path: Path) -> None:
    with bounded():
        ask(put(log | {STEPS: log[TENSORS], TENSORS: log[STEPS]}, tmp_path / "log"))


@pytest.mark.parametrize("step", ["x", [1], {}, 1.5, 10**400, None, True])
def test_a_batch_of_a_step_that_is_no_number(log: Files, step: Any, tmp_path: Path) -> None:
    name = RANK + "scalars.jsonl"
    with bounded():
        ask(put(log | {name: lines(log[name], lambda value: value.update(step=step))}, tmp_path / "log"))


@pytest.mark.parametrize("facts", [{"world_size": 10**400}, {"world_size": 2**40}, {"world_size": "x"}, {"every": []}])
def test_facts_beyond_all_bounds(log: Files, facts: dict[str, Any], tmp_path: Path) -> None:
    name = RANK + "run.json"
    with bounded():
        ask(put(log | {name: lines(log[name], lambda value: value["facts"].update(facts))}, tmp_path / "log"))


@pytest.mark.parametrize("about", [{"index": 2**62}, {"optimizer": 2**31}, {"index": -5}, {"optimizer": 1e300}, {"index": "x"}])
def test_layouts_numbered_beyond_all_bounds(log: Files, about: dict[str, Any], tmp_path: Path) -> None:
    """They are read from the events where run.json is gone."""
    name, changed = RANK + "events.jsonl", {key: data for key, data in log.items() if not key.endswith("run.json")}
    with bounded():
        ask(put(changed | {name: lines(log[name], lambda value: value.update(about))}, tmp_path / "log"))


def test_optimizers_numbered_beyond_all_bounds(log: Files, tmp_path: Path) -> None:
    name = RANK + "run.json"

    def change(value: dict[str, Any]) -> None:
        value["layouts"] = {str(2**31): value["layouts"]["0"]}

    with bounded():
        ask(put(log | {name: lines(log[name], change)}, tmp_path / "log"))


@pytest.mark.parametrize("empty", [{}, [], "", 0, False])
def test_a_layout_that_is_empty(log: Files, empty: Any, tmp_path: Path) -> None:
    name = RANK + "run.json"
    changed = lines(log[name], lambda value: value["layouts"].update({"0": [empty, empty]}))
    with bounded():
        ask(put(log | {name: changed}, tmp_path / "log"))


def test_a_rank_whose_layout_has_more_tensors_than_its_records(tmp_path: Path) -> None:
    """Its columns have lost their names; those of the other rank have not."""
    log = TARGETS["runlog"](tmp_path / "seeds")[1]
    name = "rank00001/run.json"

    def change(value: dict[str, Any]) -> None:
        value["layouts"]["0"][0]["tensors"].append({**value["layouts"]["0"][0]["tensors"][0], "replica": 2**63})

    with bounded():
        run = ask(put(log | {name: lines(log[name], change)}, tmp_path / "log"))
    assert run is not None and any("names of the tensors are lost" in note for note in run.notes)


@pytest.mark.parametrize("moment", [10**400, -(10**400), True, "nan", None, []])
def test_an_event_at_a_time_beyond_all_bounds(moment: Any, tmp_path: Path) -> None:
    log = TARGETS["runlog"](tmp_path / "seeds")[1]
    name = "rank00001/events.jsonl"
    with bounded():
        assert ask(put(log | {name: lines(log[name], lambda value: value.update(time=moment))}, tmp_path / "log")) is not None
