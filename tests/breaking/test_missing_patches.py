"""Each place of torch that is patched is taken away in turn, as another version might: what is recorded is true, or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
from stabkit.hooks import dispatch
from tests.breaking.injection import broken, functions_of
from tests.breaking.training import STEPS, patchable, train

PATCHING = {name: functions_of("stabkit.hooks.dispatch")[f"stabkit.hooks.dispatch.{name}"]
            for name in ("patch_attribute", "patch_closure_cell")}  # fmt: skip
PARTS = [name for name in functions_of("stabkit.hooks") if name.endswith(".install") and "onitor" not in name]


def compare(run: Any, whole: Any) -> None:
    """Everything in a run is as in one where nothing was missing, or is missing itself; and no rule finds more."""
    assert run.steps.tolist() == whole.steps.tolist()
    for metric, values in run.stream.step_values.items():
        truth = whole.stream.step_values[metric]
        if metric == "loss_reduction":  # 0 says that there is no loss
            values = np.where(values == 0, np.nan, values)
        if metric not in ("time", "backward_count"):
            np.testing.assert_array_equal(np.where(np.isnan(values), truth, values), truth, err_msg=metric)
    found = {finding.rule for finding in stabkit.analyze(run).findings}
    assert found <= {finding.rule for finding in stabkit.analyze(whole).findings}


@pytest.fixture
def whole(tmp_path: Path) -> Any:
    train(tmp_path / "whole", tensorboard=False)
    return stabkit.load(tmp_path / "whole")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_finds_nothing_to_patch(part: str, tmp_path: Path, whole: Any) -> None:
    before, bits = patchable(), train().bits
    with broken(functions_of("stabkit.hooks")[part], error=None, instead=[]) as missed:
        outcome = train(tmp_path / "run", tensorboard=False)
    assert missed and outcome.bits == bits and patchable() == before
    name = part.split(".")[-2]
    if name == "optimizer":
        return  # nothing is recorded without it
    run = stabkit.load(tmp_path / "run")
    assert [event["what"] for event in run.events if event["event"] == "unseen"] == [name]
    compare(run, whole)


@pytest.mark.parametrize("name", PATCHING)
def test_any_one_place_that_is_gone(name: str, tmp_path: Path, whole: Any) -> None:
    before, bits, number = patchable(), train().bits, 0
    while True:
        number += 1
        with broken(PATCHING[name], lambda call, gone=number: call == gone, error=None) as missed:
            outcome = train(tmp_path / str(number), tensorboard=False)
        if not missed:
            break
        assert outcome.bits == bits and patchable() == before
        compare(stabkit.load(tmp_path / str(number)), whole)
    assert number > 3 or name == "patch_closure_cell"


def test_a_scale_that_nobody_saw_is_never_part_of_a_loss(tmp_path: Path) -> None:
    with broken(functions_of("stabkit.hooks")["stabkit.hooks.scaler.install"], error=None, instead=[]):
        train(tmp_path / "run", scaled=True, tensorboard=False)
    train(tmp_path / "whole", scaled=True, tensorboard=False)
    run, whole = (stabkit.load(tmp_path / name) for name in ("run", "whole"))
    kept = run.stream.step_values["loss"][: STEPS - 4]
    assert not np.nanmax(kept, initial=0.0) > 2 * np.nanmax(whole.stream.step_values["loss"][: STEPS - 4])


def test_a_second_watch_says_so_too(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    gone = broken(functions_of("stabkit.hooks")["stabkit.hooks.schedule.install"], error=None, instead=[])
    with gone, stabkit.watch(model, None, tmp_path / "a"), stabkit.watch(model, None, tmp_path / "b"):
        pass
    for name in "ab":
        assert [e["what"] for e in stabkit.load(tmp_path / name).events if e["event"] == "unseen"] == ["schedule"]
    assert not dispatch._undo
