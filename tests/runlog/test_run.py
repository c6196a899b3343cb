"""What a loaded run hands out, and what it says of what it does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runlog_records import layout_of, record

import stabkit
from stabkit.errors import MissingMetricError, UsageError
from stabkit.metric import METRICS
from stabkit.runlog import RunLog, RunWriter, TensorInfo
from stabkit.runlog.columns import LazyColumns


def test_series_and_tables(write: Callable[..., Path]) -> None:
    run = stabkit.load(write(range(1, 4), weight_norm=4.0, update_norm=2.0))
    loss = run.series("loss")
    assert (loss.metric, loss.tensor, loss.unit) == ("loss", None, "")
    assert loss.steps.dtype == np.int64 and loss.values.tolist() == [99, 98, 97]
    assert run.series("time").unit == "s"
    assert run.series("lr").values.tolist() == [1e-3] * 3
    assert run.series("grad_absmax", "b").values.tolist() == [1.1, 2.1, 3.1]
    ratio = run.series("update_ratio")
    assert ratio.values.tolist() == [0.5] * 3 and ratio.basis == "intended"


def test_what_is_missing_names_what_would_have_recorded_it(write: Callable[..., Path]) -> None:
    logdir = write(range(1, 4), tensors=None)
    run = stabkit.load(logdir)
    for metric, scope, words in [
        ("loss_scale", "step", f"{logdir} holds no loss_scale per step; it is recorded by a loop with an enabled"),
        ("clip_coefficient", "step", "a loop that clips by norm"),
        ("weight_norm", "tensor", "holds no weight_norm per tensor; it is recorded by stabkit.watch"),
        ("applied_update_norm", "tensor", "exact_updates=True"),
        ("beta1", "step", "holds no beta1"),
        ("nonsense", "step", "there is no quantity called 'nonsense'; known are"),
        ("rms_ratio", "step", 'rms_ratio is not a quantity per step; ask for table("rms_ratio")'),
        ("loss", "tensor", 'loss is not a quantity per tensor; ask for series("loss")'),
    ]:
        assert not run.has(metric, scope)
        with pytest.raises(MissingMetricError) as error:
            run.series(metric) if scope == "step" else run.table(metric)
        assert words in str(error.value)


def test_has_tells_whether_series_and_table_answer(write: Callable[..., Path]) -> None:
    run = stabkit.load(write(range(1, 4)))
    for metric, scope in METRICS:
        try:
            (run.table if scope != "step" else run.series)(metric)
            answered = True
        except MissingMetricError:
            answered = False
        assert run.has(metric, scope) == answered, (metric, scope)


@pytest.mark.parametrize("steps", [[], [0]], ids=["empty", "weights at entry only"])
def test_a_run_without_steps(write: Callable[..., Path], steps: list[int]) -> None:
    run = stabkit.load(write(steps))
    assert len(run.steps) == 0 and run.attempts == 1 and run.notes == ()
    assert [t.name for t in run.tensors] == ["a", "b"]
    for metric in ("loss", "lr", "update_ratio"):
        with pytest.raises(MissingMetricError, match=f"holds no {metric}: no step has been recorded yet"):
            run.series(metric)
    assert len(run.until(3).steps) == 0
    with pytest.raises(MissingMetricError):
        RunLog.from_arrays([]).series("loss")


def test_a_run_whose_writer_was_opened_and_nothing_more(tmp_path: Path) -> None:
    RunWriter(tmp_path, {"torch": "2"}).close()
    run = stabkit.load(tmp_path)
    assert len(run.steps) == 0 and run.facts["torch"] == "2"


def test_a_loss_that_was_never_a_number_was_recorded_all_the_same(write: Callable[..., Path]) -> None:
    run = stabkit.load(write(range(1, 4), loss=float("nan")))
    assert run.has("loss") and np.isnan(run.series("loss").values).all()
    unseen = stabkit.load(write(range(1, 4), "unseen", loss=float("nan"), loss_reduction=0))
    assert not unseen.has("loss")


def test_unknown_tensors_groups_and_optimizers(write: Callable[..., Path]) -> None:
    run = stabkit.load(write(range(1, 4)))
    with pytest.raises(KeyError, match="there is no tensor 'aa'; near it are a"):
        run.series("grad_absmax", "aa")
    with pytest.raises(UsageError, match="parameter groups 0 to 0; there is no group 1"):
        run.series("lr", group=1)
    with pytest.raises(UsageError, match="optimizers 0 to 0; there is no optimizer 1"):
        run.optimizer(1)


def test_until_is_the_run_as_it_was_known_then(write: Callable[..., Path], tmp_path: Path) -> None:
    logdir = tmp_path / "run"
    writer = RunWriter(logdir, {})
    number = writer.layout(0, layout_of("a", "b"))
    attempt, _ = writer.begin_attempt(0, 0)
    for step in range(1, 7):
        writer.write(0, record(step, attempt, number, clip_max_norm=1.0 if step > 4 else float("nan")))
        writer.scalars(step, {"val_loss": step / 2})
        writer.event("mark", step=step, note=f"after {step}")
    writer.close()
    run = stabkit.load(logdir)
    then = run.until(3)
    assert then.steps.tolist() == then.stream.tensor_steps.tolist() == [1, 2, 3]
    assert then.series("loss").values.tolist() == [99, 98, 97]
    assert then.table("grad_absmax").values.tolist() == [[1, 1.1], [2, 2.1], [3, 3.1]]
    assert then.series("val_loss").values.tolist() == [0.5, 1.0, 1.5]
    assert [e["note"] for e in then.events if e["event"] == "mark"] == ["after 1", "after 2", "after 3"]
    assert run.has("clip_max_norm") and not then.has("clip_max_norm")
    assert run.until(99).steps.tolist() == run.steps.tolist()


def test_columns_are_read_when_they_are_asked_for() -> None:
    asked: list[str] = []

    def read(name: str) -> np.ndarray:
        asked.append(name)
        return np.zeros((1, 1))

    columns = LazyColumns(("a", "b"), read)
    assert list(columns) == ["a", "b"] and len(columns) == 2 and "a" in columns and "c" not in columns
    assert asked == []
    assert columns["a"] is columns["a"] and asked == ["a"]
    with pytest.raises(KeyError):
        columns["c"]


def test_update_ratio_says_what_it_rests_on() -> None:
    weights, intended, applied = np.full((2, 1), 4.0), np.full((2, 1), 1.0), np.array([[np.nan], [9.0]])

    def ratio(**columns: np.ndarray) -> tuple[list[float], str]:
        run = RunLog.from_arrays([1, 2], tensors=(TensorInfo("a", (1,)),), columns={"weight_sumsq": weights, **columns})
        table = run.table("update_ratio")
        assert table.series("a").basis == table.basis
        return table.values[:, 0].tolist(), table.basis

    assert ratio(update_sumsq=intended) == ([0.5, 0.5], "intended")
    both = ratio(update_sumsq=intended, applied_update_sumsq=applied)
    assert both == ([0.5, 1.5], "applied where it was measured, else intended")
    assert ratio(applied_update_sumsq=np.full((2, 1), 9.0)) == ([1.5, 1.5], "applied")

    def of_steps(**norms: list[float]) -> tuple[list[float], str]:
        series = RunLog.from_arrays([1, 2], {"weight_norm": [2.0, 2.0], **norms}).series("update_ratio")
        return series.values.tolist(), series.basis

    assert of_steps(update_norm=[1.0, 1.0]) == ([0.5, 0.5], "intended")
    assert of_steps(applied_update_norm=[3.0, 3.0]) == ([1.5, 1.5], "applied")
    both = of_steps(update_norm=[1.0, 1.0], applied_update_norm=[np.nan, 3.0])
    assert both == ([0.5, 1.5], "applied where it was measured, else intended")


def test_from_arrays() -> None:
    run = RunLog.from_arrays([1, 2, 5], {"loss": [3.0, 2.0, 1.0]}, group_values={"lr": [1, 2, 3]}, source="csv")
    assert run.source == "csv" and run.series("loss").steps.tolist() == [1, 2, 5]
    assert run.series("lr").values.tolist() == [1, 2, 3]
    assert run.until(2).series("loss").values.tolist() == [3, 2]
    with pytest.raises(UsageError, match="increase"):
        RunLog.from_arrays([1, 1], {"loss": [1, 2]})
    with pytest.raises(UsageError, match="loss has 2 values for 3 steps"):
        RunLog.from_arrays([1, 2, 3], {"loss": [1, 2]})


@pytest.mark.slow
def test_a_long_log_loads_fast(tmp_path: Path) -> None:
    """20,000 steps of 52 tensors."""
    import time

    writer = RunWriter(tmp_path, {})
    number = writer.layout(0, layout_of(*(f"t{i}" for i in range(52))))
    writer.begin_attempt(0, 0)
    for step in range(1, 20001):
        writer.write(0, record(step, 0, number, tensors=52))
    writer.close()
    begin = time.perf_counter()
    run = stabkit.load(tmp_path)
    loaded = time.perf_counter()
    for metric, scope in METRICS:
        if scope == "tensor" and run.has(metric, scope):
            run.table(metric)
    assert len(run.steps) == 20000
    assert loaded - begin < 5 and time.perf_counter() - loaded < 10, "usually 0.3 s and 0.5 s"
