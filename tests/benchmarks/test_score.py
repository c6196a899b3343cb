"""The score on a small corpus whose every figure was worked out by hand, and against a slow oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.score.alarms import Alarm, alarms_of, judged
from benchmarks.score.baselines import BASELINES, alarms, tuned
from benchmarks.score.bootstrap import Resampled, wilson
from benchmarks.score.compare import compare
from benchmarks.score.corpus import Case, Event, read_cases
from benchmarks.score.curves import Curves
from benchmarks.score.match import match, merged
from benchmarks.score.report import _best
from benchmarks.score.shifted import shifted
from benchmarks.score.tally import Seen, by_class, by_family, by_rule, confidences, figures, stabkit_figures
from stabkit.finding import Diagnosis, Finding, Outcome, Severity, Status

STEPS = st.lists(st.integers(1, 400), max_size=12).map(sorted)
EVENTS = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 150)).map(lambda e: Event(e[0], e[0] + e[1])), max_size=4
).map(lambda events: tuple(sorted(events, key=lambda e: e.onset)))


def curves(loss: Any = None, n: int = 500, norm: Any = None, name: str = "x") -> Curves:
    loss = np.full(n, 1.0) if loss is None else np.asarray(loss, dtype=float)
    nothing = np.full((len(loss), 1), np.nan)
    norm = np.full(len(loss), np.nan) if norm is None else np.asarray(norm, dtype=float)
    return Curves(name, np.arange(1, len(loss) + 1), loss, norm, nothing, nothing)


def seen(steps: list[Alarm], *events: Event, n: int = 500) -> Seen:
    return Seen(Case(id="x", path=Path(), healthy=not events, events=events), tuple(steps), curves(n=n))


STALE = Event(100, 110, "spike", "stale", frozenset({"SK204"}), frozenset({"w"}))
CORPUS = [
    seen([Alarm(step=95, rule="SK204", cause="SK204", tensors=("w",), cause_tensors=("w",)),
          Alarm(step=101, rule="SK201", depth=1, cause="SK204", cause_tensors=("w",))], STALE),  # lead 5, right in all
    seen([Alarm(step=60, rule="SK203", cause="SK203", tensors=("b",), cause_tensors=("b",))], STALE),  # lead 40, wrong in all
    seen([Alarm(step=150, rule="SK201", cause="SK201")], STALE),  # late
    seen([Alarm(step=300, rule="SK201", cause="SK201")], n=1000),  # false
    seen([], n=1000),
]  # fmt: skip


def test_every_figure_of_a_small_corpus() -> None:
    told = stabkit_figures(CORPUS, Resampled(5, 200), shifts=50)
    assert told["false_per_1000_healthy"]["value"] == pytest.approx(0.5)  # 1 in 2,000
    assert told["healthy_runs_with_alarm"]["value"] == 0.5
    near, middle, far = told["H8"], told["H50"], told["H200"]
    assert near["detected"]["value"] == near["predicted"]["value"] == pytest.approx(1 / 3)
    assert middle["detected"]["value"] == middle["predicted"]["value"] == far["predicted"]["value"] == pytest.approx(2 / 3)
    assert near["late"]["value"] == middle["late"]["value"] == pytest.approx(1 / 3)
    assert near["precision"]["value"] == pytest.approx(2 / 4)  # 95 and 101, not 60 and 300; 150 is late
    assert middle["precision"]["value"] == pytest.approx(3 / 4)
    assert middle["prediction_precision"]["value"] == pytest.approx(2 / 3)
    assert near["lead"]["median"]["value"] == 0 and middle["lead"]["median"]["value"] == 5
    assert middle["lead"]["upper"]["value"] == 40
    assert near["false_per_1000_before"]["value"] == pytest.approx(1000 / (3 * 91))  # step 60, of steps 1 to 91 of three runs
    assert near["right_rule"]["value"] == near["right_tensor"]["value"] == 1
    assert middle["right_rule"]["value"] == middle["right_tensor"]["value"] == 0.5
    assert near["right_rule_of_all"]["value"] == middle["right_rule_of_all"]["value"] == pytest.approx(1 / 3)


def test_rules_are_held_to_the_events_they_may_name_and_classes_to_their_own() -> None:
    draws = Resampled(5, 100)
    rules = by_rule(CORPUS, draws)
    assert rules["SK204"]["H50"]["detected"]["value"] == pytest.approx(1 / 3)
    assert rules["SK201"]["H50"]["detected"]["count"] == 0 and rules["SK201"]["alarms"] == 3
    assert rules["SK201"]["H50"]["precision"]["value"] == 0.5  # 101 and 300; 150 is late
    assert by_class(CORPUS, draws)["stale"]["H50"]["detected"]["value"] == pytest.approx(2 / 3)


def test_false_alarms_are_counted_where_they_were() -> None:
    rules = by_rule(CORPUS, Resampled(5, 100))
    nothing = {"alarms": 0, "runs": 0, "families": {"": 0}, "hard_negatives": 0, "before": 0}
    assert rules["SK201"]["false"] == nothing | {"alarms": 1, "runs": 1, "families": {"": 1}}
    assert rules["SK203"]["false"] == nothing  # it came 40 steps before its event: in sight of it
    early = seen([Alarm(step=30, rule="SK203", cause="SK203")], STALE)
    assert by_rule([early], Resampled(1, 10))["SK203"]["false"] == {**nothing, "families": {}, "before": 1}


def test_each_family_is_measured_on_its_own_runs() -> None:
    text = [replace(one, case=replace(one.case, family="text")) for one in CORPUS[:2]]
    other = [replace(one, case=replace(one.case, family="vision")) for one in CORPUS[2:]]
    told = by_family([*text, *other])
    assert told["text"]["runs"] == 2 and told["text"]["H50"]["detected"]["value"] == 1
    assert told["text"]["H50"]["right_rule_of_all"]["value"] == 0.5
    assert told["text"]["false_per_1000_healthy"]["value"] is None
    assert told["vision"]["H50"]["detected"]["value"] == 0 and told["vision"]["false_per_1000_healthy"]["value"] == 0.5


def test_a_rule_that_names_a_cause_is_right_only_where_it_names_the_right_one() -> None:
    def runs(rule: str, step: int = 95) -> list[Seen]:
        return [seen([Alarm(step=step, rule=rule, cause=rule)], STALE)] * 5

    wrong, right = confidences(runs("SK102"))["SK102"], confidences(runs("SK204"))["SK204"]
    assert (wrong["precision"], right["precision"]) == (0, 1)
    assert confidences(runs("SK301"))["SK301"]["precision"] == 1  # it names no cause
    assert confidences(runs("SK204", 108))["SK204"]["precision"] == 1  # it goes on
    assert confidences(runs("SK204", 300))["SK204"]["precision"] == 0
    healthy = [seen([Alarm(step=95, rule="SK204")])] * 15
    assert confidences(runs("SK204") + healthy)["SK204"]["precision"] == 0.25


def test_a_rule_seen_in_few_runs_has_no_confidence() -> None:
    assert confidences(CORPUS) == {}
    told = confidences(CORPUS * 2)  # SK201 spoke in six runs; four of six findings had an event
    assert told.keys() == {"SK201"}
    assert told["SK201"]["precision"] == pytest.approx(2 / 3, abs=1e-4) and told["SK201"]["runs"] == 6
    assert (told["SK201"]["low"], told["SK201"]["high"]) == pytest.approx(wilson(4, 6), abs=1e-4)


def test_the_interval_of_a_proportion() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # as tables have it


@given(STEPS, EVENTS, st.sampled_from([8, 50, 200]))
def test_matching_against_a_slow_oracle(steps: list[int], events: tuple[Event, ...], horizon: int) -> None:
    found = match(steps, events, horizon)
    taken = {s for s in steps for e in events if e.onset <= s <= e.onset + 5}
    for i, event in enumerate(events):
        ahead = [s for s in range(event.onset - horizon, event.onset) if s in steps and s not in taken]
        told = [s for s in range(event.onset, event.onset + 6) if s in steps]
        assert found.predicted[i] == bool(ahead)
        assert found.detected[i] == bool(ahead + told)
        assert found.lead[i] == (event.onset - ahead[0] if ahead else 0)
        if ahead + told:
            assert steps[found.first[i]] == min(ahead + told)
    for s, false in zip(steps, found.false, strict=True):
        hit = s in taken or any(e.onset - horizon <= s < e.onset for e in events)
        assert false == (not hit and not any(e.onset < s <= max(e.onset + 100, e.end) for e in events))
    kinds = np.stack([found.right, found.after, found.false])
    assert (kinds.sum(axis=0) == 1).all()


@given(STEPS, EVENTS, st.integers(0, 1000))
def test_moving_alarms_and_events_together_changes_nothing(steps: list[int], events: tuple[Event, ...], by: int) -> None:
    moved = match([s + by for s in steps], [Event(e.onset + by, e.end + by) for e in events], 50)
    for one, other in zip(vars(match(steps, events, 50)).values(), vars(moved).values(), strict=True):
        np.testing.assert_array_equal(one, other)


@given(STEPS, EVENTS)
def test_a_wider_horizon_never_detects_less(steps: list[int], events: tuple[Event, ...]) -> None:
    near, far = match(steps, events, 8), match(steps, events, 50)
    assert (near.detected <= far.detected).all() and (near.lead <= far.lead).all() and (far.false <= near.false).all()


@given(STEPS)
def test_merged_alarms_are_the_first_of_their_groups(steps: list[int]) -> None:
    slow = [s for i, s in enumerate(steps) if i == 0 or s - steps[i - 1] > 30]
    assert merged(steps).tolist() == slow


def test_shifted_alarms_catch_what_chance_does() -> None:
    chance = shifted([[95]], [[Event(100, 100)]], [(1, 500)], 50, shifts=4000)
    assert chance.predicted == pytest.approx(50 / 500, abs=0.02) and chance.detected == pytest.approx(56 / 500, abs=0.02)
    assert chance.predicted_p == pytest.approx(chance.predicted, abs=0.001)


def test_a_bootstrap_of_equal_runs_is_certain_and_of_unequal_ones_is_not() -> None:
    draws = Resampled(40)
    same = draws.ratio([1] * 40, [2] * 40)
    assert same.value == same.low == same.high == 0.5
    mixed = draws.ratio([0, 1] * 20, [1] * 40)
    assert mixed.low == pytest.approx(0.5 - 1.96 * 0.5 / 40**0.5, abs=0.03) and mixed.low < 0.5 < mixed.high
    none, every = draws.ratio([0] * 40, [1] * 40), draws.ratio([1] * 40, [1] * 40)
    assert (none.value, none.high) == (0, 3 / 40) and (every.value, every.low) == (1, 1 - 3 / 40)


def test_findings_inside_others_are_alarms_and_information_is_none() -> None:
    def finding(rule: str, step: int, severity: Severity = Severity.WARNING, **more: Any) -> Finding:
        return Finding(rule=rule, name=rule, severity=severity, message="", first_step=step, last_step=step, **more)

    top = finding("SK204", 20, tensors=("w",), remedy={"beta2": 0.95}, consequences=(finding("SK201", 23),))
    note = finding("SK420", 3, Severity.INFO)
    outcomes = tuple(Outcome(rule=f.rule, name=f.rule, status=Status.FOUND, findings=(f,)) for f in (top, note))
    diagnosis = Diagnosis(path="", source="stabkit", steps=50, outcomes=outcomes)
    told = [(a.step, a.rule, a.depth, a.cause, a.remedy) for a in alarms_of(diagnosis)]
    assert told == [(20, "SK204", 0, "SK204", {"beta2": 0.95}), (23, "SK201", 1, "SK204", {"beta2": 0.95})]
    assert [a.step for a in alarms_of(diagnosis, Severity.INFO)] == [3, 20, 23]


def noisy(n: int = 1500) -> np.ndarray[Any, Any]:
    return np.exp(0.05 * np.random.default_rng(0).standard_normal(n))


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_a_baseline_sees_a_great_rise_and_is_silenced_by_its_limit(baseline: Any) -> None:
    sick = noisy()
    sick[1400:1408] *= 100
    case = curves(sick, norm=sick)
    with np.errstate(all="ignore"):
        assert baseline.flags(case, baseline.default)[1400:1412].any() or baseline.name == "random"
    quiet = alarms(baseline, np.inf, curves(noisy(), norm=noisy()))
    assert len(quiet) == 0


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
@pytest.mark.parametrize("budget", [0.0, 1.0, 5.0])
def test_tuning_keeps_to_the_budget(baseline: Any, budget: float) -> None:
    healthy = [curves(noisy(), norm=noisy(), name=str(i)) for i in range(2)]
    limit = tuned(baseline, healthy, budget)
    assert 1000 * sum(len(alarms(baseline, limit, one)) for one in healthy) <= budget * 3000
    if limit == baseline.grid[0]:  # never so low that all flags of a run are one alarm
        assert len(alarms(baseline, baseline.grid[len(baseline.grid) // 2], healthy[0])) <= budget * 1.5


def test_a_rule_that_cannot_be_turned_down_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    def flags(curves: Curves, limit: float) -> Any:
        return np.isin(curves.steps, [100, 200]) | (curves.steps > limit)

    stubborn = replace(BASELINES[0], name="stubborn", flags=flags, default=1000.0, grid=(300.0, 1000.0))
    tame = replace(stubborn, name="tame", flags=lambda curves, limit: curves.steps == 5 * limit, grid=(20.0, 1000.0))
    monkeypatch.setattr("benchmarks.score.compare.BASELINES", (stubborn, tame))
    told = compare(CORPUS, CORPUS, Resampled(5, 50))  # stabkit: one alarm in 2,000 healthy steps
    assert {name: (each["keeps"], each["limit"]) for name, each in told.items()} == {
        "stubborn | as published": (True, 1000.0), "tame | as published": (True, 1000.0),
        "stubborn | at stabkit's rate": (False, None), "tame | at stabkit's rate": (True, 1000.0),
        "stubborn | at 1 per 1,000": (False, None), "tame | at 1 per 1,000": (True, 20.0),
    }  # fmt: skip
    best = _best({"stabkit": stabkit_figures(CORPUS, Resampled(5, 50), 10), "baselines": told}, "at 1 per 1,000")
    assert best[0][1] == "> 0.00 (tame)"  # the stubborn one foretells more, at the price of more false alarms
    assert told["stubborn | at 1 per 1,000"]["H50"]["detected"]["value"] == 1


def label(runs: Path, name: str, **more: Any) -> None:
    (runs / name).mkdir(parents=True)
    known = {"schema": 1, "id": name, "part": "tune", "family": "text", "fault": None, "healthy": True, "hard_negative": False,
             "seed": 0, "twin": None, "remedies_apply": False, "events": [], "final_loss": None}  # fmt: skip
    (runs / name / "label.json").write_text(json.dumps(known | more))


def test_only_the_part_asked_for_is_read(tmp_path: Path) -> None:
    label(tmp_path, "a-s0")
    label(tmp_path, "b-s0", part="score", schema="nobody looks at this")
    label(tmp_path, "a-s0+0123")
    (tmp_path / "unfinished").mkdir()
    assert [case.id for case in read_cases(tmp_path, {"tune"})] == ["a-s0"]


def test_a_label_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    event = {"onset": 3, "end": 4, "kind": "spike", "class": "batch", "rules": [], "tensors": []}
    label(tmp_path, "a-s0", events=[event])
    with pytest.raises(ValueError, match="a healthy run has no events"):
        read_cases(tmp_path, {"tune"})


def test_a_rise_of_the_data_may_be_told_and_a_mistake_that_did_no_harm_may_be_stated(tmp_path: Path) -> None:
    event = {"onset": 170, "end": 180, "kind": "spike", "class": "batch", "rules": [], "tensors": []}
    label(tmp_path, "a", excused_steps=[[100, 120]], excused_rules=["SK401"])
    label(tmp_path, "b", excused_steps=[[165, 190]], excused_rules=["SK401"], healthy=False, events=[event])
    label(tmp_path, "c", healthy=False)  # failed, and no training loss shows it
    one, other, neither = read_cases(tmp_path, {"tune"})
    told = [Alarm(step=step, rule=rule) for step in (99, 100, 125, 126) for rule in ("SK201", "SK204")]
    kept = [(alarm.step, alarm.rule) for alarm in judged([*told, Alarm(step=1, rule="SK401")], one)]
    assert kept == [(99, "SK201"), (99, "SK204"), (100, "SK204"), (125, "SK204"), (126, "SK201"), (126, "SK204")]
    rest = [Alarm(step=step, rule="SK201") for step in (166, 170, 180, 181)] + [Alarm(step=1, rule="SK401")]
    assert [alarm.step for alarm in judged(rest, other)] == [170, 180, 1]  # the event is not excused; it is in sight from 1
    assert not neither.healthy and not neither.events


def test_a_baseline_is_excused_where_stabkit_is() -> None:
    every = next(baseline for baseline in BASELINES if baseline.name == "always")
    case = replace(curves(n=6), excused=np.array([0, 0, 1, 1, 0, 0], dtype=bool))
    assert alarms(every, 1.0, case).tolist() == [1, 2, 5, 6]


def test_nothing_to_measure_is_said_to_be_unknown() -> None:
    told = figures([seen([])], [[]], Resampled(1, 10))
    assert told["H50"]["detected"]["value"] is None
