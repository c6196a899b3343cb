"""The recorded runs of the corpus that tests of rules read."""

from __future__ import annotations

import pytest

from tests.cases.corpus import HERE, NAMES, load


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_run_is_whole_and_small(name: str) -> None:
    run, label = load(name)
    assert label["id"] == name
    assert label["part"] == "tune"
    assert len(run.steps) == label["steps"]
    assert (HERE / f"{name}.npz").stat().st_size < 300_000


def test_sick_and_healthy_ones_are_there() -> None:
    labels = [load(name)[1] for name in NAMES]
    assert sum(label["healthy"] for label in labels) >= 3
    assert len({event["class"] for label in labels for event in label["events"]}) >= 7
