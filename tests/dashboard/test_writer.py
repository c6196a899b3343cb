"""The numbers of the whole step and the user's own, as TensorBoard's accumulator reads them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from dashboard_log import LAYOUT, NAN, decoded, last, measured, record, scalars

from stabkit.dashboard.writer import DashboardWriter, _Stream
from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Layout, TensorInfo
from stabkit.runlog.record import Group


def test_health_tags_and_values(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.step(0, record(grad_norm=4.0, grad_norm_used=1.0, clip_max_norm=1.0, clip_coefficient=0.25, weight_norm=8.0,
                          update_norm=2.0, loss_scale=1024.0))  # fmt: skip
    assert last(tmp_path) == {
        "health/loss": 2.5,
        "health/lr": 0.125,
        "health/grad_norm": 4,
        "health/grad_norm_used": 1,
        "health/clip_coefficient": 0.25,
        "health/clip_rate": 1,
        "health/update_ratio": 0.25,
        "health/loss_scale": 1024,
        "health/skipped": 0,
    }


def test_what_is_missing_is_not_written(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.step(0, record(0, tensors=measured()))  # the weights at entry
    writer.step(0, record(1, loss=NAN, loss_reduction=0, backward_count=0, weight_norm=0.0, update_norm=1.0))
    assert last(tmp_path) == {"health/lr": 0.125}


def test_no_event_where_nothing_was_measured(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.step(0, record(1, loss=NAN, loss_reduction=0, groups=()))
    writer.scalars(1, {})
    assert not any(event.HasField("summary") for event in decoded(tmp_path))


def test_rates_of_groups(writer: DashboardWriter, tmp_path: Path) -> None:
    for step, rates in enumerate([(0.5, 0.5), (0.5, 0.25), (0.5, 0.5)], start=1):
        writer.step(0, record(step, groups=tuple(Group(lr=rate) for rate in rates)))
    shown = scalars(tmp_path)
    assert shown["health/lr"] == [(1, 0.5)]
    assert shown["health/lr/group0"] == [(2, 0.5), (3, 0.5)]  # for good, once they have differed
    assert shown["health/lr/group1"] == [(2, 0.25), (3, 0.5)]


def test_many_groups_are_shown_by_their_extremes(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.step(0, record(groups=tuple(Group(lr=2.0**-i) for i in range(20))))
    assert last(tmp_path) == {"health/loss": 2.5, "health/lr/lowest": 2.0**-19, "health/lr/highest": 1}


def test_clip_rate_looks_back_100_steps(writer: DashboardWriter, tmp_path: Path) -> None:
    coefficients = [0.5] * 30 + [1.0] * 30 + [NAN] * 30 + [1.0] * 60  # NaN: no clip call in that step
    for step, coefficient in enumerate(coefficients, start=1):
        writer.step(0, record(step, clip_coefficient=coefficient))
    clipped = [c < 1 for c in coefficients]
    expected = [(n, np.float32(sum(clipped[max(0, n - 100) : n]) / min(n, 100))) for n in range(1, len(clipped) + 1)]
    assert scalars(tmp_path)["health/clip_rate"] == expected


def test_clip_rate_begins_anew_with_an_attempt(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.step(0, record(1, clip_coefficient=0.5))
    second = record(2, clip_coefficient=1.0)
    second.attempt = 1
    writer.step(0, second)
    assert scalars(tmp_path)["health/clip_rate"] == [(1, 1), (2, 0)]


def test_skipped_once_a_scaler_was_seen(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.step(0, record(1))
    writer.step(0, record(2, skipped=1))
    writer.step(0, record(3))
    assert scalars(tmp_path)["health/skipped"] == [(2, 1), (3, 0)]


def test_loss_that_is_really_nan_is_written(writer: DashboardWriter, tmp_path: Path) -> None:
    for step, loss in enumerate([NAN, math.inf, -math.inf, 1e300], start=1):
        writer.step(0, record(step, loss=loss))
    values = [value for _, value in scalars(tmp_path)["health/loss"]]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, math.inf]  # the last: beyond float32


def test_sums_are_nan_where_nonfinite_elements_were_counted(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    whole = {"grad_norm": 1.0, "grad_norm_used": 1.0, "weight_norm": 1.0, "update_norm": 1.0, "clip_coefficient": 1.0}
    writer.step(0, record(1, tensors=measured(), **whole))
    spoilt = measured(grad_sumsq=[4, NAN, 16], grad_used_sumsq=[1, math.inf, 4], rms_sum=[6, NAN, 0.5],
                      update_sumsq=[0.01, NAN, 0.01], grad_nonfinite=[0, 2, 0])  # fmt: skip
    writer.step(0, record(2, tensors=spoilt, weight_norm=1.0, clip_max_norm=1.0))
    shown = scalars(tmp_path)
    for tag in ("health/grad_norm", "health/grad_norm_used", "health/clip_coefficient", "health/update_ratio"):
        assert [math.isnan(v) for _, v in shown[tag]] == [False, True]
    for quantity in ("grad_norm", "update_ratio", "rms_ratio"):
        assert [math.isnan(v) for _, v in shown[f"modules/{quantity}/head"]] == [False, True]
        assert [math.isnan(v) for _, v in shown[f"modules/{quantity}/wte"]] == [False, False]


def test_nothing_is_invented_for_a_skipped_step(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    writer.step(0, record(1, tensors=measured()))
    used = [1, math.inf, 4]
    skipped = measured(grad_used_sumsq=used, rms_sum=[NAN] * 3, update_sumsq=[0] * 3, grad_nonfinite=[0, 2, 0])
    writer.step(0, record(2, skipped=1, tensors=skipped, weight_norm=1.0, update_norm=0.0))
    shown = scalars(tmp_path)
    assert [step for step, _ in shown["modules/rms_ratio/head"]] == [1]
    assert shown["modules/update_ratio/head"][1] == (2, 0)
    assert shown["health/update_ratio"] == [(2, 0)]


def test_a_measured_update_stands_before_one_that_was_intended(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    weights = measured()[:, [column.name for column in TENSOR_COLUMNS].index("weight_sumsq")]
    applied = measured(update_sumsq=[NAN] * 3, applied_update_sumsq=4 * weights)
    writer.step(0, record(1, tensors=applied, weight_norm=1.0, update_norm=NAN, applied_update_norm=2.0))
    shown = last(tmp_path)
    assert shown["health/update_ratio"] == 2.0
    assert {value for tag, value in shown.items() if tag.startswith("modules/update_ratio/")} == {2.0}


def test_user_scalars(writer: DashboardWriter, tmp_path: Path) -> None:
    numbers = {"val_loss": 2.5, "best": True, "numpy": np.float32(0.5), "flag": np.bool_(False), "huge": 10**400}
    writer.scalars(7, numbers | {"nan": NAN, "deep/er": 1, "batch": "17", "none": None, "list": [1.0], "complex": 1j})
    shown = last(tmp_path)
    assert math.isnan(shown.pop("user/nan"))
    assert shown == {"user/val_loss": 2.5, "user/best": 1, "user/numpy": 0.5, "user/flag": 0, "user/huge": math.inf,
                     "user/deep/er": 1}  # fmt: skip
    assert [e.step for e in decoded(tmp_path)[1:]] == [7]


@pytest.mark.parametrize(
    ("name", "tag"),
    [("a\nb", "a_b"), ("\ud800", "_"), ("", "unnamed"), ("/x/", "x"), ("größe λ.0 %", "größe λ.0 %"), ("a" * 300,) * 2],
)
def test_tags_that_tensorboard_can_hold(writer: DashboardWriter, tmp_path: Path, name: str, tag: str) -> None:
    writer.layout(0, Layout((TensorInfo(f"{name}.weight", (1,)),)))
    writer.step(0, record(tensors=measured()[:1]))
    writer.scalars(1, {name: 1.0})
    shown = last(tmp_path)
    assert f"modules/grad_norm/{tag}" in shown
    assert f"user/{tag}" in shown


@pytest.mark.parametrize("spoiled", ["nothing", "an applied update", "a count", "a missing gradient", "weights of zero"])
def test_the_short_way_to_a_modules_numbers_is_the_long_one(spoiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tensors = rng.lognormal(size=(len(LAYOUT.tensors), len(TENSOR_COLUMNS)))
    place = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
    tensors[:, [place["grad_nonfinite"], place["weight_nonfinite"]]] = 0
    tensors[:, place["applied_update_sumsq"]] = np.nan
    where = {"an applied update": "applied_update_sumsq", "a count": "grad_nonfinite", "a missing gradient": "grad_sumsq"}
    if spoiled in where:
        tensors[0, place[where[spoiled]]] = np.nan if spoiled == "a missing gradient" else 2.0
    if spoiled == "weights of zero":
        tensors[:, place["weight_sumsq"]] = 0

    def told() -> tuple[list[str], list[float]]:
        stream = _Stream("")
        stream.set_tensors(LAYOUT)
        return stream.modules(record(1), tensors)

    quickly = told()
    monkeypatch.setattr(_Stream, "_plain_modules", lambda self, taken: None)
    slowly = told()
    assert quickly[0] == slowly[0]
    assert quickly[1] == pytest.approx(slowly[1], rel=1e-14)
