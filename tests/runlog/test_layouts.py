"""What the columns stand for may change in mid-run; there may be several optimizers; not every step is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runlog_records import layout_of, record
from runlog_training import make, step, train
from torch import nn

import stabkit
from stabkit.errors import MissingMetricError
from stabkit.runlog import Layout, RunWriter, TensorInfo


def test_a_group_added_in_mid_run(tmp_path: Path) -> None:
    model, optimizer = make()
    head = nn.Linear(1, 1)
    with stabkit.watch({"body": model, "head": head}, optimizer, tmp_path, tensorboard=False):
        for done in range(1, 9):
            if done == 5:
                optimizer.add_param_group({"params": list(head.parameters()), "lr": 5e-2})
            step(model, optimizer)
    run = stabkit.load(tmp_path)
    assert run.notes == ()
    assert [t.name for t in run.tensors][-2:] == ["head.weight", "head.bias"]
    assert [t.group for t in run.tensors][-2:] == [1, 1]
    weights = run.table("weight_norm")
    added = weights.series("head.weight")
    assert weights.steps.tolist() == list(range(9))
    assert np.isnan(added.values[:5]).all() and np.isfinite(added.values[5:]).all()
    assert np.isfinite(weights.values[:, :-2]).all()
    rates = run.table("lr")
    assert rates.tensors == ("group0", "group1")
    assert np.isnan(rates.values[:4, 1]).all() and (rates.values[4:, 1] == 5e-2).all()


def test_tensors_that_come_go_and_change_places(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, {})
    names = {1: "ab", 2: "ba", 3: "cb", 4: "ab", 5: "abcd"}
    for number_of_step, letters in names.items():
        number = writer.layout(0, layout_of(*letters))
        if number_of_step == 1:
            writer.begin_attempt(0, 0)
        writer.write(0, record(number_of_step, 0, number, tensors=len(letters)))
    writer.close()
    run = stabkit.load(tmp_path)
    table = run.table("grad_absmax")
    assert table.tensors == ("a", "b", "c", "d")
    nan = np.nan
    expected = [[1, 1.1, nan, nan], [2.1, 2, nan, nan], [nan, 3.1, 3, nan], [4, 4.1, nan, nan]]
    expected.append([5, 5.1, 5.2, 5.3])
    assert np.array_equal(table.values, expected, equal_nan=True)
    assert sum(event["event"] == "layout" for event in run.events) == 4, "the known one is not noted twice"


def test_several_optimizers(tmp_path: Path) -> None:
    (first, one), (second, two) = make(0), make(1, width=5)
    with stabkit.watch({"g": first, "d": second}, [one, two], tmp_path, tensorboard=False):
        for done in range(12):
            step(first, one)
            if done % 3 == 0:
                step(second, two)
    run = stabkit.load(tmp_path)
    assert len(run.streams) == 2 and run.notes == ()
    assert run.steps.tolist() == list(range(1, 13)) and run.optimizer(1).steps.tolist() == [1, 2, 3, 4]
    assert all(t.name.startswith("d.") for t in run.optimizer(1).tensors)
    assert run.optimizer(1).table("update_norm").values.shape == (5, 6)


def test_more_than_ten_optimizers_keep_their_order(tmp_path: Path) -> None:
    """And one that never stepped keeps its place."""
    writer = RunWriter(tmp_path, {})
    for optimizer in range(12):
        number = writer.layout(optimizer, layout_of(f"t{optimizer}"))
        attempt, _ = writer.begin_attempt(optimizer, 0)
        if optimizer != 5:
            writer.write(optimizer, record(1, attempt, number, tensors=1, loss=float(optimizer)))
    writer.close()
    run = stabkit.load(tmp_path)
    assert len(run.streams) == 12
    assert [t.name for stream in run.streams for t in stream.tensors] == [f"t{i}" for i in range(12)]
    assert len(run.optimizer(5).steps) == 0
    assert run.optimizer(11).series("loss").values.tolist() == [11]


def test_every_third_step_is_measured(tmp_path: Path) -> None:
    train(tmp_path / "run", 8, every=3)
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, 9))
    assert run.stream.tensor_steps.tolist() == [0, 1, 4, 7]
    assert np.isfinite(run.series("loss").values).all()
    assert run.notes == ()


def test_row_zero_holds_the_weights_at_entry(tmp_path: Path) -> None:
    entry = [float(p.detach().norm()) for p in make()[0].parameters()]
    train(tmp_path / "run", 2)
    table = stabkit.load(tmp_path / "run").table("weight_norm")
    assert table.steps.tolist() == [0, 1, 2]
    assert np.allclose(table.values[0], entry) and np.array_equal(table.values[0], table.values[1])
    assert np.isnan(stabkit.load(tmp_path / "run").table("grad_norm_used").values[0]).all()


def test_why_a_column_is_missing_is_told(tmp_path: Path) -> None:
    tensors = (TensorInfo("a", (2,)),)
    missing = {"exp_avg_sumsq": "SGD keeps no moments", "loss_scale": "no scaler"}
    layout = Layout(tensors, 1, "SGD", missing=missing)
    assert Layout.from_json(layout.to_json()) == layout and hash(layout)
    writer = RunWriter(tmp_path, {})
    number = writer.layout(0, layout)
    writer.begin_attempt(0, 0)
    row = record(1, 0, number, tensors=1)
    assert row.tensors is not None
    row.tensors[:] = np.nan
    writer.write(0, row)
    writer.close()
    run = stabkit.load(tmp_path)
    with pytest.raises(MissingMetricError, match=r"no exp_avg_norm per tensor \(SGD keeps no moments\); it is"):
        run.table("exp_avg_norm")
    with pytest.raises(MissingMetricError, match=r"no loss_scale per step \(no scaler\)"):
        run.series("loss_scale")


def test_a_layout_of_an_older_version_is_read() -> None:
    data = layout_of("a", groups=2).to_json()
    for later in ("missing", "options", "implementation"):
        del data[later]
    assert Layout.from_json(data | {"from_the_future": 1}) == layout_of("a", groups=2)


def test_an_optimizer_without_tensors_of_its_own_state(tmp_path: Path) -> None:
    model = make()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            step(model, optimizer)
    run = stabkit.load(tmp_path)
    assert run.steps.tolist() == [1, 2, 3]
    assert run.has("grad_norm_used", "tensor") and not run.has("rms_ratio", "tensor")
