"""Resumed, restarted and disordered logs; which column is which; columns of tensors; counts of skipped steps."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stabkit
from stabkit.errors import UsageError
from stabkit.sources import lines as lines_module
from stabkit.sources.collect import Collected
from stabkit.sources.columns import plain, take
from stabkit.sources.skips import skipped_steps

Write = Callable[..., Path]
NAN = math.nan


def rows(*passes: tuple[range, float]) -> str:
    """A CSV of losses, one constant for each pass over the steps."""
    return "step,loss\n" + "".join(f"{step},{value}\n" for steps, value in passes for step in steps)


def test_a_resume_replaces_what_it_goes_over(write: Write) -> None:
    run = stabkit.load(write("log.csv", rows((range(0, 1000, 10), 1.0), (range(705, 900, 10), 2.0))))
    assert run.attempts == 1
    expected = {**{s: 1.0 for s in range(0, 1000, 10) if not 705 <= s <= 895}, **dict.fromkeys(range(705, 900, 10), 2.0)}
    assert dict(zip(run.steps.tolist(), run.series("loss").values.tolist(), strict=True)) == dict(sorted(expected.items()))
    assert "resumed at step 705: 19 rows up to step 895 were replaced; the later ones count" in run.notes
    assert any(note.startswith("steps 896 to 990 were logged before") for note in run.notes)


@pytest.mark.parametrize("first", [0, 1, 10])
def test_a_restart_is_another_attempt_and_the_last_is_judged(write: Write, first: int) -> None:
    path = write("log.csv", rows((range(first, 500, 10), NAN), (range(first, 600, 10), 2.0)))
    run = stabkit.load(path)
    assert (run.attempt, run.attempts, len(run.steps)) == (1, 2, len(range(first, 600, 10)))
    assert [f.rule for f in stabkit.analyze(run).findings] in ([], ["SK507"])  # these losses stand still
    before = run.previous()
    assert before is not None and before.steps.tolist() == stabkit.load(path, 0).steps.tolist() == [*range(first, 500, 10)]
    assert stabkit.analyze(before).findings
    with pytest.raises(UsageError, match="has attempts 0 to 1; there is no attempt 2"):
        stabkit.load(path, 2)


def test_an_evaluation_before_the_first_loss_belongs_to_its_own_attempt(write: Write) -> None:
    one = "0,,9.0\n" + "".join(f"{step},1.0,\n" for step in range(50))
    run = stabkit.load(write("log.csv", "step,loss,val_loss\n" + one + one.replace("9.0", "8.0")))
    assert run.series("val_loss").values.tolist() == [8.0]
    assert run.previous().series("val_loss").values.tolist() == [9.0]  # type: ignore[union-attr]


def test_one_row_out_of_place_loses_nothing(write: Write) -> None:
    steps = [*range(20), 21, 20, *range(22, 60)]
    run = stabkit.load(write("log.csv", "step,loss\n" + "".join(f"{step},{step}\n" for step in steps)))
    assert run.steps.tolist() == run.series("loss").values.tolist() == [*range(60)]
    assert "1 row is out of order: sorted" in run.notes


@given(st.lists(st.tuples(st.integers(30, 400), st.integers(4, 100)), min_size=1, max_size=5))
def test_many_resumes_equal_an_oracle(tmp_path_factory: pytest.TempPathFactory, resumes: list[tuple[int, int]]) -> None:
    """The oracle writes into a dictionary and forgets, at each resume, what lies in the range gone over."""
    passes = [range(300), *(range(begin, begin + length) for begin, length in resumes)]
    held: dict[int, float] = {}
    written = []
    reached = -1
    for number, steps in enumerate(passes):
        if number and steps.start > reached:
            continue  # that would be no resume
        for step in [step for step in held if steps.start <= step < steps.stop]:
            del held[step]
        held |= dict.fromkeys(steps, float(number))
        written += [(step, float(number)) for step in steps]
        reached = steps.stop - 1
    path = tmp_path_factory.mktemp("resumes") / "log.csv"
    path.write_text("step,loss\n" + "".join(f"{step},{value}\n" for step, value in written))
    run = stabkit.load(path)
    assert dict(zip(run.steps.tolist(), run.series("loss").values.tolist(), strict=True)) == dict(sorted(held.items()))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("step loss_scale loss", {"step": "step", "loss": "loss", "loss_scale": "loss_scale"}),
        ("global_step train/loss val/loss Train/GradNorm", {"loss": "train/loss", "grad_norm": "Train/GradNorm"}),
        ("iteration lm_loss grad-norm learning_rate", {"loss": "lm_loss", "grad_norm": "grad-norm", "lr": "learning_rate"}),
        ("_step train/gradient_norm train_loss eval_loss", {"loss": "train_loss", "grad_norm": "train/gradient_norm"}),
        ("step loss_scale grad_norm", {"grad_norm": "grad_norm", "loss_scale": "loss_scale"}),
        ("step eval/loss", {"loss": "eval/loss"}),
        ("step policy_loss value_loss lr", {"lr": "lr"}),
        ("step ctc_loss aux_loss", {"loss": "ctc_loss"}),
        ("trainer/global_step train_loss_step train_loss_epoch lr-AdamW", {"loss": "train_loss_step", "lr": "lr-AdamW"}),
        ("trainer/global_step loss/train/total l2_norm/grad/global lr-DecoupledAdamW/group0",
         {"loss": "loss/train/total", "grad_norm": "l2_norm/grad/global", "lr": "lr-DecoupledAdamW/group0"}),
        ("step train/CrossEntropyLoss optim/total_grad_norm optim/learning_rate_group0",
         {"loss": "train/CrossEntropyLoss", "grad_norm": "optim/total_grad_norm", "lr": "optim/learning_rate_group0"}),
        ("step loss_metrics/global_avg_loss loss_metrics/global_max_loss grad_norm",
         {"loss": "loss_metrics/global_avg_loss", "grad_norm": "grad_norm"}),
        ("epoch loss", {"step": "epoch", "loss": "loss"}),
    ],
)  # fmt: skip
def test_guesses(names: str, expected: dict[str, str]) -> None:
    collected = Collected()
    for row in range(20):
        collected.add({name: float(row) for name in names.split()})
    taken = dict(take(collected).quantities)
    assert {name: taken.get(name) for name in expected} == expected
    assert set(taken) - {"step"} == set(expected) - {"step"}


def test_a_denser_column_is_preferred_to_a_better_name(write: Write) -> None:
    text = "step,loss,train/loss\n" + "".join(f"{step},{9 if step == 0 else ''},1.0\n" for step in range(50))
    assert stabkit.load(write("log.csv", text)).facts["taken"]["loss"] == "train/loss"


def test_a_batch_that_begins_again_each_epoch_is_not_the_step(write: Write) -> None:
    text = "epoch,batch,loss\n" + "".join(f"{epoch},{batch},1.0\n" for epoch in range(4) for batch in range(25))
    run = stabkit.load(write("log.csv", text))
    assert run.steps.tolist() == [*range(1, 101)] and run.attempts == 1
    assert any("begins again with every epoch" in note for note in run.notes)
    assert "there is no column of steps: the rows are counted from 1" in run.notes


def test_a_duration_called_time_is_not_the_time(write: Write) -> None:
    run = stabkit.load(write("log.csv", "step,loss,time\n" + "".join(f"{s},1.0,{s / 10}\n" for s in range(9))))
    assert not run.has("time") and "time (as logged)" in run.scalars


def test_norms_of_tensors_become_a_table(write: Write) -> None:
    names = ("grad_norm/embed.weight", "grad_norm/layers.0.attn.weight", "grad_norm/layers.0.norm.weight")
    records = [{"step": step, "loss": 2.0, "grad_norm": 5.0, **{name: step + i for i, name in enumerate(names)}}
               for step in range(30)]  # fmt: skip
    run = stabkit.load(write("log.jsonl", "\n".join(map(json.dumps, records))))
    table = run.table("grad_norm")
    assert table.tensors == ("embed.weight", "layers.0.attn.weight", "layers.0.norm.weight")
    np.testing.assert_allclose(table.values, np.arange(30.0)[:, None] + np.arange(3.0))
    assert [tensor.role for tensor in run.tensors] == ["embedding", "matrix", "norm"]
    assert run.series("grad_norm").values.tolist() == [5.0] * 30
    assert not stabkit.analyze(run).findings


def test_gradients_that_are_no_norms_stay_as_they_are(write: Write) -> None:
    records = [{"step": step, "loss": 2.0, "gradients/a.weight": -1.0, "grad_norm/mean": 1.0} for step in range(5)]
    run = stabkit.load(write("log.jsonl", "\n".join(map(json.dumps, records))))
    assert not run.tensors and {"gradients/a.weight", "grad_norm/mean"} <= set(run.scalars)


@pytest.mark.parametrize(
    ("column", "steps", "logged", "expected"),
    [
        ("skipped", [1, 2, 3], [0, 1, 0], [0, 1, 0]),
        ("skipped", [10, 20, 30, 40], [6, 6, 16, 17], [NAN, 0, 1, NAN]),
        ("skipped", [1, 2, 3, 4], [1, 2, 2, 3], [1, 1, 0, 1]),
        ("number of skipped iterations", [10, 20, 30], [0, 10, 3], [0, 1, NAN]),
        ("number of skipped iterations", [31214, 31215], [1, 0], [1, 0]),
        ("skipped", [1, 2, 3], [NAN, 1, 0], [NAN, 1, 0]),
    ],
)
def test_counts_of_skipped_steps(column: str, steps: list[int], logged: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(skipped_steps(column, np.array(steps), np.array(logged, dtype=float)), expected)


def test_a_table_that_wandb_exports(write: Write) -> None:
    logged = ("train/loss", "train/loss__MIN", "train/loss__MAX", "train/grad_norm")
    text = ",".join(['"Step"', *(f'"wise-owl-3 - {name}"' for name in logged)]) + "\n"
    text += '"1","2.5","2.0","3.0","1.5"\n"1,000","1.5","1.0","2.0","1.0"\n'
    run = stabkit.load(write("wandb_export.csv", text))
    assert run.steps.tolist() == [1, 1000]
    assert run.series("loss").values.tolist() == [2.5, 1.5] and run.series("grad_norm").values.tolist() == [1.5, 1.0]


def test_steps_that_several_processes_log(write: Write) -> None:
    run = stabkit.load(write("log.csv", "step,loss\n" + "".join(f"{step},{rank}\n" for step in range(9) for rank in (1, 2))))
    assert run.series("loss").values.tolist() == [2.0] * 9
    assert "9 rows repeat steps logged before: the last counts" in run.notes


def test_plain_names() -> None:
    assert {plain(name) for name in ("Train/Grad Norm", "train_grad_norm", "train.gradNorm")} == {"train_grad_norm"}
    assert plain("elapsed time per iteration (ms)") == "elapsed_time_per_iteration"


def test_memory_stays_flat(write: Write) -> None:
    """Of each row three numbers stay, 16 bytes each; the text, five hundred times that, goes by."""
    filler = "x" * 20_000
    text = "step,loss,note\n" + "".join(f"{i},1.5,{filler}\n" for i in range(3000))
    path = write("log.csv.gz", gzip.compress(text.encode()))
    del text
    tracemalloc.start()
    run = stabkit.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(run.steps) == 3000 and any(text == "note" for text in run.facts["text"])
    assert peak < 8e6  # of 60 MB


def test_a_gzip_bomb_is_bounded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "_ALWAYS_READ", 2**20)
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 2**18)
    path = write("log.csv.gz", gzip.compress(b"step,loss\n1,2.0\n2,1.0\n" + b"0" * 2**26))
    tracemalloc.start()
    run = stabkit.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run.steps.tolist() == [1, 2] and peak < 8e6
    assert any("it grows beyond reason" in note for note in run.notes)
    assert any("longer than" in note for note in run.notes)
