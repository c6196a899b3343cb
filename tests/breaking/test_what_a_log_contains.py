"""What a log contains is written down in SECURITY.md, and nothing else is in one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog.record import GROUP_FIELDS, STEP_FIELDS
from tests.breaking.training import train

EVENTS = {
    "open": {"schema", "facts"},
    "close": {"error"},
    "attempt": {"optimizer", "first_step", "count"},
    "layout": {"optimizer", "index", "layout"},
    "mark": {"step", "note"},
    "scheduled": {"optimizer"},
    "scheduler": {"optimizer", "kind", "last_epoch", "rate", "step"},
    "autocast": {"dtype", "step"},
    "slow_disk": {"seconds", "behind", "lost"},
    "gone": {"step"},
    "not_shown": {"what", "why"},
    "fault": {"where", "error", "place", "step", "stopped"},
}


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("log") / "run"
    train(logdir, scaled=True)
    return logdir / "rank00000"


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["value"] for line in path.read_text().splitlines()]


def test_run_json_holds_what_is_documented(rank: Path, root: Path) -> None:
    documented = set(re.findall(r"`(\w+)`", (root / "SECURITY.md").read_text()))
    found = {key for key in keys(lines(rank / "run.json")[0]) if not key.isdigit() and not key.endswith(".jsonl")}
    quantities = {*STEP_FIELDS, *(column.name for column in TENSOR_COLUMNS)}  # in `missing`, each with the reason
    assert found - documented - quantities == set()


def test_events_hold_what_is_documented(rank: Path) -> None:
    for event in lines(rank / "events.jsonl"):
        assert set(event) - {"event", "time", "attempt"} <= EVENTS[event["event"]], event


def test_scalars_hold_what_the_user_gave(rank: Path) -> None:
    for line in lines(rank / "scalars.jsonl"):
        assert set(line) <= {"attempt", "time", "step", "values", "ahead"} and set(line["values"]) == {"val"}


def test_records_hold_quantities_of_the_vocabulary(rank: Path) -> None:
    for path in rank.glob("optimizer0/*.npy"):
        dtype = np.load(path, mmap_mode="r").dtype
        known = {*STEP_FIELDS, "step", "time", "attempt", "layout", "group", "tensors", "crc"}
        assert set(dtype.names or ()) <= known
        for name, columns in (("group", GROUP_FIELDS), ("tensors", [column.name for column in TENSOR_COLUMNS])):
            if name in (dtype.names or ()):
                assert set(dtype[name].base.names or ()) <= set(columns)


def test_nothing_is_written_but_the_log(rank: Path) -> None:
    inside = {path.name for path in rank.parent.iterdir()}
    assert {name for name in inside if not name.startswith("events.out.tfevents.")} == {"rank00000", ".lock"}
    assert {path.name for path in rank.iterdir()} == {"run.json", "events.jsonl", "scalars.jsonl", "optimizer0"}


def test_no_module_unpickles_or_asks_the_network(root: Path) -> None:
    """Read from the source of every module: what can run code out of a file, and what can send anything."""
    forbidden = r"^\s*(?:import|from) (?:pickle|marshal|shelve|dill|joblib|cloudpickle|requests|urllib\.request|http\.client)\b"
    calls = r"torch\.load\(|allow_pickle=True|\byaml\.load\(|urlopen\("
    for folder in ("stabkit", "hooks", "analyzers"):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text()
            assert not re.search(forbidden, text, re.MULTILINE) and not re.search(calls, text), path
