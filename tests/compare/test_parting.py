"""Where real runs part: one seed with one thing changed, and other seeds as healthy twins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import DATA, RUNS

import stabkit
from stabkit.compare import Comparison, Verdict, compare
from stabkit.errors import MissingMetricError
from stabkit.runlog import RunLog, Stream
from tests.cases import load_case


@cache
def recorded(name: str) -> RunLog:
    return load_case(name, DATA)


def held(name: str) -> Comparison:
    return compare(recorded("usual"), recorded(name))


def test_a_run_and_itself_are_the_same() -> None:
    found = held("usual")
    assert (found.verdict, found.split, found.partings, found.settings, found.exit_code) == (Verdict.SAME, None, (), (), 0)


@pytest.mark.parametrize(
    ("name", "step", "stage", "tensors", "settings"),
    [
        ("rate", 80, "updates", 6, ("lr",)),
        ("order", 60, "loss", 6, ()),
        ("fault", 70, "gradients", 1, ()),
        ("weights", 50, "weights", 1, ()),
        ("nan", 90, "loss", 6, ()),
        ("short", 1, "updates", 6, ("weight_decay",)),
    ],
)
def test_runs_of_one_seed_part_exactly_where_one_thing_was_changed(
    name: str, step: int, stage: str, tensors: int, settings: tuple[str, ...]
) -> None:
    found = held(name)
    assert found.split is not None and found.verdict is Verdict.PARTED and found.exit_code == 1
    assert (found.split.step, found.split.stage, len(found.split.tensors)) == (step, stage, tensors)
    assert found.split.tensor_step == step and found.split.compared == 6 and found.split.settings == settings
    assert found.split.same_until == (step - 1 or None)
    if tensors == 1:
        assert found.split.tensors == ("2.weight",)


def test_another_seed_differs_by_noise_only() -> None:
    found = held("seed")
    assert (found.verdict, found.split, found.partings, found.exit_code) == (Verdict.NOISE, None, (), 0)
    assert found.looked_at == ("loss", "grad_norm", "grad_norm of 6 tensors", "rms_ratio of 6 tensors")


def test_another_seed_at_another_rate_parts_beyond_noise_in_the_loss() -> None:
    found = held("seed and rate")
    assert found.verdict is Verdict.PARTED and found.split is None
    first = found.partings[0]
    assert first.metric == "loss" and first.a < first.b and first.step < 40 and first.until == 160
    assert [(each.name, each.a, each.b, each.step) for each in found.settings] == [("lr", "0.01", "0.0005", 1)]


def test_a_loss_that_is_no_number_parts_at_its_step() -> None:
    (first, *_) = held("nan").partings
    assert (first.metric, first.step, first.until) == ("loss", 90, 160)


def test_a_rate_that_jumps_is_told_by_the_tensors_that_follow() -> None:
    """The same seed; from step 60 on another rate. Beyond noise the gradients change within a few steps."""
    found = compare(load_case("healthy"), load_case("rate_jump"))
    assert found.split is not None and (found.split.step, found.split.stage, found.split.settings) == (60, "updates", ("lr",))
    assert len(found.partings) > 5 and all(55 <= each.step <= 130 for each in found.partings)


def test_the_order_of_the_two_changes_nothing_but_their_names() -> None:
    there, back = held("seed and rate"), compare(recorded("seed and rate"), recorded("usual"))
    assert [(p.metric, p.step, p.a, p.b) for p in there.partings] == [(p.metric, p.step, p.b, p.a) for p in back.partings]
    assert [(s.a, s.b) for s in there.settings] == [(s.b, s.a) for s in back.settings]


def shaken(run: RunLog, by: float, begin: int = 1) -> RunLog:
    """The run as another order of sums would have made it: every number off by up to a share of itself, from a step on."""
    rng = np.random.default_rng(3)
    stream = run.stream

    def off(values: Any, steps: Any) -> Any:
        factors = 1 + by * rng.uniform(-1, 1, np.shape(values))
        late = (steps >= begin).reshape(-1, *[1] * (np.ndim(values) - 1))
        return np.where(late & (np.round(values) != values), values * factors, values)

    steps = {name: off(values, stream.steps) for name, values in stream.step_values.items()}
    columns = {name: off(np.asarray(stream.columns[name]), stream.tensor_steps) for name in stream.columns}
    return replace(run, streams=(replace(stream, step_values=steps, columns=columns),))


def test_sums_in_another_order_are_told_as_rounding() -> None:
    found = compare(recorded("usual"), shaken(recorded("usual"), 1e-6, begin=3))
    assert (found.verdict, found.exit_code) == (Verdict.ROUNDING, 0)
    assert found.split is not None and found.split.step == 3 and 0 < found.split.size < 1e-5


def bare(run: RunLog, digits: int = 4, every: int = 1, **about: Any) -> RunLog:
    """The loss alone, as another tool would print it."""
    series = run.series("loss")
    losses = np.round(series.values, digits)[::every]
    return RunLog.from_arrays(series.steps[::every], {"loss": losses}, source="CSV", path="x.csv", **about)


def test_logs_of_a_loss_alone_are_compared() -> None:
    assert compare(bare(recorded("usual")), bare(recorded("usual"))).verdict is Verdict.SAME
    assert compare(bare(recorded("usual")), bare(recorded("seed"))).verdict is Verdict.NOISE
    apart = compare(bare(recorded("usual")), bare(recorded("order")))
    assert apart.split is not None and (apart.split.step, apart.split.stage, apart.split.tensors) == (60, "loss", ())
    assert compare(bare(recorded("usual")), bare(recorded("seed and rate"))).partings[0].metric == "loss"
    with_ours = compare(bare(recorded("usual"), digits=5), recorded("usual"))
    assert with_ours.verdict is Verdict.NOISE and "A recorded no tensors" in with_ours.notes[0]


def test_a_first_loss_that_agrees_in_two_digits_is_no_same_beginning() -> None:
    a, b = bare(recorded("usual"), digits=1), bare(recorded("seed"), digits=1)
    first = a.stream.step_values["loss"].copy()
    first[1:] = b.stream.step_values["loss"][1:]
    alike = RunLog.from_arrays(b.steps, {"loss": first}, source="CSV")
    assert compare(a, alike).split is None


def test_of_other_lengths_and_cadences_the_common_steps_count() -> None:
    found = compare(recorded("usual"), bare(recorded("usual"), digits=9, every=5))
    assert found.common == 32 and "128 steps of A are not in the other run: left out" in found.notes
    longer = held("short")
    assert (longer.common, longer.a.steps, longer.b.steps) == (40, 160, 40)


def test_too_few_steps_are_said_to_be_too_few() -> None:
    found = compare(bare(recorded("usual")).until(12), bare(recorded("seed")).until(12))
    assert (found.verdict, found.exit_code) == (Verdict.UNKNOWN, 3)
    assert "too few to tell a difference from noise" in found.notes[0]


def test_what_was_recorded_per_layer_is_said_not_to_be_compared() -> None:
    usual = recorded("usual")
    seen = replace(usual, scalars={"attention_logit_bound/blocks.0.q": (usual.steps, np.ones(len(usual.steps)))})
    assert not compare(usual, usual).notes
    for a, b, who in ((seen, seen, "A and B"), (seen, usual, "A alone"), (usual, seen, "B alone")):
        (note,) = compare(a, b).notes
        assert note.startswith(f"{who} recorded attention_logit_bound per layer: not compared")


def test_nothing_in_common_is_an_error_that_says_what_there_is() -> None:
    late = RunLog.from_arrays([500, 501], {"loss": [1.0, 2.0]}, path="late")
    with pytest.raises(MissingMetricError, match=r"no step in common: steps 1 to 160 and steps 500 to 501"):
        compare(recorded("usual"), late)
    other = RunLog.from_arrays(range(1, 60), {"weight_norm": np.ones(59)}, path="other")
    with pytest.raises(MissingMetricError, match=r"no quantity in common.*--map loss=COLUMN"):
        compare(bare(recorded("usual")), other)


def test_what_was_set_differently_is_told_group_by_group() -> None:
    run = recorded("usual")
    stream: Stream = run.stream
    lr = np.repeat(stream.group_values["lr"], 2, axis=1)
    infos = tuple(replace(tensor, group=i % 2) for i, tensor in enumerate(run.tensors))
    groups = {name: np.repeat(values, 2, axis=1) for name, values in stream.group_values.items()}
    one = replace(run, streams=(replace(stream, tensors=infos, group_values=groups),))
    renamed = (*infos[:-1], replace(infos[-1], name="4.offset"))
    changed = {**groups, "lr": np.where(np.arange(2) == 1, 2 * lr, lr)}
    other = replace(
        run,
        facts={**run.facts, "precision": "bfloat16", "torch": "9.9"},
        streams=(replace(stream, tensors=renamed, group_values=changed, optimizer="Adam"),),
    )
    told = {each.name: (each.a, each.b, each.step) for each in compare(one, other).settings}
    assert told["optimizer"] == ("AdamW", "Adam", None)
    assert told["lr, group 1"] == ("0.01", "0.02", 1)
    assert told["tensors the other has not"] == ("1 tensor: 4.bias", "1 tensor: 4.offset", None)
    assert told["precision"] == ("float32", "bfloat16", None) and told["torch"][1] == "9.9"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_trained_again_the_runs_part_where_they_did(tmp_path: Path, one_thread: None) -> None:
    runs = {name: stabkit.load(make(tmp_path / name)) for name, make in RUNS.items()}
    again = stabkit.load(RUNS["usual"](tmp_path / "again"))
    assert compare(runs["usual"], again).verdict is Verdict.SAME
    for name, step in {"rate": 80, "order": 60, "fault": 70, "weights": 50, "nan": 90}.items():
        found = compare(runs["usual"], runs[name])
        assert found.split is not None and found.split.step == step
    assert compare(runs["usual"], runs["seed"]).verdict is Verdict.NOISE
