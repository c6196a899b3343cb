"""What trainers print and save: Megatron, DeepSpeed, nanoGPT and its kin, Hugging Face; and directories of logs."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stabkit
from stabkit.errors import LogVersionError, NotALogError, StabkitError, UsageError
from stabkit.sources import runs_in
from stabkit.sources.text import pairs

Write = Callable[..., Path]
NAN = math.nan

NANOGPT = """\
number of parameters: 10.65M
num decayed parameter tensors: 26, with 10,740,096 parameters
step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2654, time 31143.65ms, mfu -100.00%
iter 10: loss 3.2426, time 17.38ms, mfu 21.44%
step 20: train loss 2.5, val loss 2.6
iter 20: loss nan, time 17.4ms, mfu 21.3%
"""
LLM_C = """\
| device                | NVIDIA A100                                        |
step    1/20000 | loss 11.009 (+nanz)| norm 15.23 (+nanz)| lr 8.57e-07 | 3056.36 ms | 42.6% bf16 MFU | 171541 tok/s
step    2/20000 | loss 10.955 (-1.2z)| norm 15.5 (+0.1z)| lr 1.71e-06 | 2817.01 ms | 42.6% bf16 MFU | 185991 tok/s
val loss 11.1
"""
MEGATRON = """\
using world size: 8
[default3]: iteration        1/   1000 | consumed samples:           16 | elapsed time per iteration (ms): 3121.0 | \
learning rate: 0.000E+00 | global batch size:    16 | loss scale: 4294967296.0 | number of skipped iterations:   1 | \
number of nan iterations:   0 |
[default3]: iteration        2/   1000 | consumed samples:           32 | elapsed time per iteration (ms): 312.0 | \
learning rate: 3.000E-05 | global batch size:    16 | lm loss: 1.074E+01 | loss scale: 65536.0 | grad norm: 2.25 | \
number of skipped iterations:   0 | number of nan iterations:   0 |
"""
DEEPSPEED = """\
[2023-04-18 01:46:52,554] [INFO] [loss_scaler.py:188:update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. \
Attempted loss scale: 65536, but hysteresis is 2. Reducing hysteresis to 1
[2023-04-18 01:46:53,259] [INFO] [loss_scaler.py:181:update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. \
Attempted loss scale: 65536, reducing to 32768
[2023-04-18 01:46:59,142] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=2, \
lr=[9.6e-06, 1e-05], mom=[(0.9, 0.95), (0.9, 0.95)]
[2023-04-18 01:47:06,590] [INFO] [logging.py:96:log_dist] [Rank 0] step=20, skipped=2, \
lr=[9.5e-06, 1e-05], mom=[(0.9, 0.95), (0.9, 0.95)]
"""
TRANSFORMERS = """\
{'loss': 2.5, 'grad_norm': 1.25, 'learning_rate': 5e-05, 'epoch': 0.1}
  3%|3         | 10/300 [00:01<00:42,  6.8it/s]\r{'loss': 1.5, 'grad_norm': 1.0, 'learning_rate': 4e-05, 'epoch': 0.2}
{'eval_loss': 3.5, 'eval_runtime': 1.0, 'epoch': 0.2}
"""


def values(run: stabkit.RunLog, metric: str) -> dict[int, float]:
    """A quantity by step."""
    series = run.series(metric)
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_nanogpt(write: Write) -> None:
    run = stabkit.load(write("train.log", NANOGPT))
    assert run.steps.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(run.series("loss").values, [4.2654, 3.2426, NAN])
    assert run.stream.step_values["loss_reduction"].tolist() == [1, 1, 1]
    assert values(run, "val loss") == {0: 4.2823, 20: 2.6}


def test_llm_c(write: Write) -> None:
    run = stabkit.load(write("main.log", LLM_C))
    assert values(run, "loss") == {1: 11.009, 2: 10.955}
    assert values(run, "grad_norm") == {1: 15.23, 2: 15.5}
    assert values(run, "lr") == {1: 8.57e-07, 2: 1.71e-06}


def test_megatron(write: Write) -> None:
    run = stabkit.load(write("main.log", MEGATRON))
    assert run.source == "text (Megatron)"
    np.testing.assert_array_equal(run.series("loss").values, [NAN, 10.74])
    assert run.stream.step_values["loss_reduction"].tolist() == [0, 1]  # of a skipped iteration it prints no loss
    assert values(run, "loss_scale") == {1: 4294967296.0, 2: 65536.0}
    assert values(run, "skipped") == {1: 1.0, 2: 0.0}
    assert values(run, "grad_norm")[2] == 2.25


def test_deepspeed(write: Write) -> None:
    run = stabkit.load(write("main.log", DEEPSPEED))
    assert run.source == "text (DeepSpeed)"
    np.testing.assert_array_equal(run.series("loss_scale").values, [32768, NAN])
    np.testing.assert_array_equal(run.series("skipped").values, [NAN, 0])  # 2 of 10, but which?
    assert run.table("lr").values.tolist() == [[9.6e-06, 1e-05], [9.5e-06, 1e-05]]
    assert np.diff(run.series("time").values)[0] == pytest.approx(7.448)
    assert not run.has("loss")


def test_what_transformers_prints(write: Write) -> None:
    run = stabkit.load(write("train.out", TRANSFORMERS))
    assert values(run, "loss") == {1: 2.5, 2: 1.5} and values(run, "grad_norm") == {1: 1.25, 2: 1.0}
    assert "there is no column of steps: the rows are counted from 1" in run.notes


@pytest.mark.parametrize(
    ("text", "losses"),
    [
        ("0 val 10.9\n0 train 10.8\n1 train 10.5\n250 val 6\n", {0: 10.8, 1: 10.5}),  # build-nanogpt
        ("\x1b[31mstep:  1  \x1b[32mloss:  8.5  \x1b[34mgrad_norm: 1.5\nstep:  2  loss:  8.0\n", {1: 8.5, 2: 8.0}),
        ('2024-01-01 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "9.5", "loss_scale": "64", '
         '"num_updates": "10"}\n', {10: 9.5}),  # fairseq
        ("Iter [50/1000]  lr: 1e-04, loss: 1.5\nIter [100/1000]  lr: 1e-04, loss: 1.25\n", {50: 1.5, 100: 1.25}),  # mmcv
    ],
)  # fmt: skip
def test_what_others_print(write: Write, text: str, losses: dict[int, float]) -> None:
    assert values(stabkit.load(write("train.log", text)), "loss") == losses


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s:12 trl:3.25", {"s": 12, "trl": 3.25}),
        ("step:100/1000 train_loss:3.2327 train_time:181ms", {"step": 100, "train_loss": 3.2327, "train_time": 181}),
        ("Iter [50/1000] lr: 1.0e-04, loss: 1.5, grad_norm: inf", {"Iter": 50, "lr": 1e-4, "loss": 1.5, "grad_norm": math.inf}),
        ("epoch 001:   10 / 100 loss=12.5, num_updates=10", {"epoch": 1, "loss": 12.5, "num_updates": 10}),
        ("global_step=3 | loss = -.5e1", {"global_step": 3, "loss": -5.0}),
    ],
)
def test_pairs_of_a_line(line: str, expected: dict[str, float]) -> None:
    found = pairs(line)
    assert {name: found.get(name) for name in expected} == expected


STATE = {
    "best_metric": None,
    "epoch": 1.0,
    "global_step": 30,
    "log_history": [
        {"epoch": 0.1, "grad_norm": 1.5, "learning_rate": 5e-05, "loss": 2.5, "step": 10},
        {"epoch": 0.2, "grad_norm": NAN, "learning_rate": 4e-05, "loss": NAN, "step": 20},
        {"epoch": 0.2, "eval_loss": 3.0, "step": 20},
        {"epoch": 0.3, "grad_norm": 1.0, "learning_rate": 3e-05, "loss": 1.5, "step": 30},
        {"epoch": 1.0, "train_loss": 2.0, "train_runtime": 9.0, "step": 30},
    ],
    "stateful_callbacks": {"x": {"args": {}}},
}


@pytest.mark.parametrize("indent", [2, None])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
def test_trainer_state(write: Write, indent: int | None, pack: Callable[[bytes], bytes]) -> None:
    run = stabkit.load(write("trainer_state.json", pack(json.dumps(STATE, indent=indent).encode())))
    assert run.source == "trainer_state.json" and run.steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(run.series("loss").values, [2.5, NAN, 1.5])
    assert run.stream.step_values["loss_reduction"].tolist() == [1, 1, 1]
    assert values(run, "lr") == {10: 5e-05, 20: 4e-05, 30: 3e-05}
    assert values(run, "eval_loss") == {20: 3.0}
    assert stabkit.analyze(run).outcome("SK301").findings[0].first_step == 20


def test_a_trainer_state_as_transformers_saves_it(tmp_path: Path) -> None:
    state = pytest.importorskip("transformers", reason="needs transformers").TrainerState()
    state.log_history = STATE["log_history"]
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    assert stabkit.load(tmp_path).steps.tolist() == [10, 20, 30]


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_trainer_state_that_is_cut_off(write: Write, size: int) -> None:
    history = [{"step": step, "loss": 2.0, "note": "{[\"" * 5} for step in range(size)]
    text = json.dumps({"log_history": history})
    run = stabkit.load(write("trainer_state.json", text[: int(0.9 * len(text))]))
    assert 0.85 * size < len(run.steps) < 0.95 * size
    assert any("ends in the middle of a record" in note for note in run.notes)


def test_an_array_of_objects(write: Write) -> None:
    run = stabkit.load(write("history.json", json.dumps([{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}], indent=1)))
    assert values(run, "loss") == {1: 2.5, 2: 1.5}


def test_a_directory_is_searched_for_runs_and_passes_over_the_rest(write: Write, tmp_path: Path) -> None:
    for step in (10, 30):
        cut = {**STATE, "log_history": STATE["log_history"][: step // 10]}  # type: ignore[index]
        write(f"hf/checkpoint-{step}/trainer_state.json", json.dumps(cut))
    write("plain/train.log", NANOGPT)
    write("lightning/version_0/metrics.csv", "epoch,step,train_loss_step,val_loss\n0,9,2.0,\n0,19,1.5,\n0,19,,3.0\n")
    write("lightning/version_0/hparams.yaml", "lr: 0.1\nloss: 3\nstep: 4\n")
    write("results.csv", "model,accuracy\n1,2\n3,4\n")
    write("config.json", json.dumps({"hidden": 12}, indent=2))
    write("README.md", NANOGPT[:80])
    write(".hidden/x.csv", "step,loss\n1,2\n")
    found = runs_in(str(tmp_path))
    assert sorted(Path(path).relative_to(tmp_path).as_posix() for path in found) == [
        "hf/checkpoint-30/trainer_state.json",
        "lightning/version_0/metrics.csv",
        "plain/train.log",
    ]
    assert stabkit.load(tmp_path / "lightning").steps.tolist() == [9, 19]
    with pytest.raises(UsageError, match="holds several runs"):
        stabkit.load(tmp_path)


def test_runs_of_stabkit_are_found_beside_the_others(write: Write, tmp_path: Path) -> None:
    from stabkit.runlog import RunWriter

    for name in ("a", "b"):
        writer = RunWriter(tmp_path / name, {"every": 1})
        writer.close()
    write("c.csv", "step,loss\n1,2\n2,1\n")
    assert [Path(path).name for path in runs_in(str(tmp_path))] == ["a", "b", "c.csv"]
    assert runs_in(str(tmp_path / "a")) == [str(tmp_path / "a")]


def test_the_two_errors_stay_two(write: Write, tmp_path: Path) -> None:
    from stabkit.runlog.lines import checksum_line

    with pytest.raises(NotALogError, match="cannot be read as a log of another tool"):
        stabkit.load(write("x.bin", bytes(range(256)) * 10))
    write("new/rank00000/run.json", checksum_line({"schema": 99}))
    with pytest.raises(LogVersionError, match="log format 99"):
        stabkit.load(tmp_path / "new")
    with pytest.raises(NotALogError, match="Give that directory"):
        stabkit.load(tmp_path / "new" / "rank00000" / "run.json")


def test_a_log_of_stabkit_needs_no_map(tmp_path: Path) -> None:
    from stabkit.runlog import RunWriter

    RunWriter(tmp_path / "a", {"every": 1}).close()
    with pytest.raises(UsageError, match="was written by stabkit"):
        stabkit.load(tmp_path / "a", mapping={"loss": "x"})


def test_rules_that_need_more_say_what_would_have_recorded_it(write: Write) -> None:
    run = stabkit.load(write("log.csv", "step,loss\n" + "".join(f"{step},1.0\n" for step in range(50))))
    outcome = stabkit.analyze(run).outcome("SK204")
    assert str(outcome.status) == "not-applicable" and "recorded by stabkit.watch" in outcome.reason
    assert not any(str(outcome.status) == "failed" for outcome in stabkit.analyze(run).outcomes)


WHOLE = {
    "log.csv": b"step,loss,grad_norm\n" + b"".join(b"%d,%d.5,1.0\n" % (i, i) for i in range(30)),
    "log.jsonl": b"".join(b'{"step": %d, "loss": %d.5}\n' % (i, i) for i in range(30)),
    "trainer_state.json": json.dumps(STATE).encode(),
    "train.log": (NANOGPT + MEGATRON + DEEPSPEED).encode(),
}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 2000), st.binary(max_size=60), st.integers(0, 40), st.booleans())
def test_no_damage_raises_anything_but_ours(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: int, noise: bytes, cut: int, pack: bool
) -> None:
    data = gzip.compress(WHOLE[name]) if pack else WHOLE[name]
    at %= len(data)
    path = tmp_path_factory.mktemp("damage") / name
    path.write_bytes(data[:at] + noise + data[at + cut :])
    try:
        run = stabkit.load(path)
    except StabkitError:
        return
    assert not any(str(outcome.status) == "failed" for outcome in stabkit.analyze(run).outcomes)
