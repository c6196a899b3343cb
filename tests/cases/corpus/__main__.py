"""Copies runs and labels, some cut short; `python -m benchmarks.corpus --part tune` must have made them."""

from __future__ import annotations

import json
from typing import Any

import stabkit
from benchmarks.corpus import RUNS, label_of
from tests.cases import save_case
from tests.cases.corpus import HERE, LAST, NAMES


def until(label: dict[str, Any], last: int) -> dict[str, Any]:
    """The label of the first steps of a run: what became of it later is left out."""
    events = [{**each, "end": min(each["end"], last)} for each in label["events"] if each["onset"] <= last]
    return {**label, "steps": last, "events": events, "healthy": label["healthy"] or not events}


for name in NAMES:
    label = label_of(name)
    assert label is not None
    run, last = stabkit.load(RUNS / name / "run"), LAST.get(name, label["steps"])
    save_case(name, run.until(last), HERE)
    (HERE / f"{name}.json").write_text(json.dumps(until(label, last), indent=1) + "\n")
