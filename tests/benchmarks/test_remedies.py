"""Which remedy is tried on which run, and what counts as healed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.score.alarms import Alarm
from benchmarks.score.bootstrap import wilson
from benchmarks.score.corpus import Case, Event
from benchmarks.score.curves import Curves
from benchmarks.score.others import remedies
from benchmarks.score.remedy import Trial, chosen, told, train_again
from benchmarks.score.tally import Seen

NOTHING = Curves("x", np.arange(1, 11), np.ones(10), np.ones(10), np.ones((10, 1)), np.ones((10, 1)))


def sick(name: str, cls: str, *alarms: Alarm, apply: bool = True) -> Seen:
    case = Case(id=name, path=Path(), events=(Event(5, 6, cls=cls),), remedies_apply=apply)
    return Seen(case, alarms, NOTHING)


def advice(step: int, rule: str, depth: int = 0, **remedy: float) -> Alarm:
    return Alarm(step=step, rule=rule, depth=depth, cause=rule, remedy=remedy, facts={"first_step": step})


def label(*events: dict[str, Any], failed: bool = False, final: float | None = 1.0) -> dict[str, Any]:
    return {"events": list(events), "failed": failed, "final_loss": final, "twin_loss": 1.0}


SPIKE = {"kind": "spike", "onset": 7}
RUNS = [
    sick("a", "stale", advice(1, "SK201"), advice(2, "SK102", depth=1, peak_lr=1.0), advice(3, "SK204", beta2=0.95),
         advice(4, "SK203", clip_norm=1.0)),
    sick("b", "stale", advice(2, "SK203", clip_norm=1.0)),
    sick("c", "start"),
    sick("d", "start", advice(2, "SK203", clip_norm=2.0)),
    sick("e", "scale", advice(2, "SK203", clip_norm=2.0), apply=False),
    Seen(Case(id="f", path=Path(), healthy=True), (advice(2, "SK203", clip_norm=2.0),), NOTHING),
]  # fmt: skip


def test_the_earliest_cause_with_a_remedy_is_tried_on_every_sick_run_that_one_can_heal() -> None:
    trials = {trial.id: trial for trial in chosen(RUNS)}
    assert trials.keys() == {"a", "b", "c", "d"}
    assert (trials["a"].rule, trials["a"].remedy, trials["a"].facts) == ("SK204", {"beta2": 0.95}, {"first_step": 3})
    assert (trials["c"].rule, trials["c"].remedy) == ("", {})


def test_a_cap_takes_from_every_class_in_turn() -> None:
    many = [sick(f"{cls}{i}", cls) for cls in ("batch", "stale", "start") for i in range(1 if cls == "batch" else 9)]
    classes = [trial.cls for trial in chosen(many, 5)]
    assert sorted(classes) == ["batch", "stale", "stale", "start", "start"]
    assert chosen(many, 5) == chosen(many, 5) == chosen(many)[:5]


def test_healed_is_no_event_and_a_loss_as_good_as_the_twins() -> None:
    known = [("stale", "SK204")] * 3 + [("stale", "SK203"), ("start", "SK203")]
    trials = [Trial(str(i), cls, rule, {"beta2": 0.95}, {}) for i, (cls, rule) in enumerate(known)]
    trials.append(Trial("5", "start", "", {}, {}))
    labels = [label(), label(SPIKE), label(failed=True, final=2.0), label(), "not tried: ValueError: x", "no remedy in numbers"]
    data = told(trials, labels, 8)
    assert (data["healed"]["value"], data["healed"]["count"]) == (2 / 4, 4)
    assert (data["healed"]["low"], data["healed"]["high"]) == wilson(2, 4)
    assert (data["healed_of_all"]["value"], data["healed_of_all"]["count"]) == (2 / 6, 6)
    assert data["classes"]["stale"]["healed"]["value"] == 2 / 4 and data["classes"]["start"]["healed"]["value"] is None
    assert data["rules"].keys() == {"SK203", "SK204"} and data["rules"]["SK204"]["healed"]["value"] == pytest.approx(1 / 3)
    assert [run["outcome"] for run in data["runs"]] == [
        "healed: loss 1, twin 1", "spike at step 7", "worse than its twin: loss 2, twin 1", "healed: loss 1, twin 1",
        "not tried: ValueError: x", "no remedy in numbers",
    ]  # fmt: skip
    assert data["without"] == 1
    shown = remedies({"remedies": data})
    assert "6 of 8 sick runs" in shown and "| 0 | stale | SK204 | beta2 = 0.95 | healed: loss 1, twin 1 |" in shown


def test_a_run_without_a_remedy_is_not_trained(tmp_path: Path) -> None:
    assert train_again([Trial("c", "start", "", {}, {})], tmp_path, 1) == ["no remedy in numbers"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_cannot_be_trained_does_not_lose_the_others(tmp_path: Path) -> None:
    pytest.importorskip("benchmarks.corpus", reason="the corpus is not part of this tree")
    pytest.importorskip("sklearn", reason="the corpus needs scikit-learn: pip install -e '.[benchmarks]'")
    labels = train_again([Trial("no-such-run", "x", "SK204", {"beta2": 0.95}, {}), Trial("c", "x", "", {}, {})], tmp_path, 1)
    assert labels == ["not tried: KeyError: 'no-such-run'", "no remedy in numbers"]
