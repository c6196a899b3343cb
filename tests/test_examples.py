"""Every example, run as a user runs it: a process of its own, in a directory of its own, with its small setting."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stabkit

Run = Callable[..., str]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Run a Python command in an empty directory; what it printed."""

    def run(*args: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "110"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "StabkitWarning" not in done.stderr, done.stderr
        return done.stdout

    return run


@pytest.fixture
def examples(root: Path) -> Path:
    """Where the examples lie."""
    return root / "examples"


def losses(printed: str) -> list[float]:
    """The losses a training printed."""
    return [float(number) for number in re.findall(r"loss (\d+\.\d+)", printed)]


def test_every_example_is_run_here(examples: Path) -> None:
    tests = Path(__file__).read_text()
    assert all(f'examples / "{path.name}"' in tests for path in examples.glob("*.py"))


def test_quickstart_finds_the_missing_warmup(examples: Path, run: Run, tmp_path: Path) -> None:
    printed = run(examples / "quickstart.py", "--steps", 60)
    assert re.search(r"^(warning|error) SK101 missing-warmup: no warmup: step \d+ at rate 0.03 changed", printed, re.MULTILINE)
    assert len(stabkit.load(tmp_path / "runs/quickstart").steps) == 60


def test_quickstart_is_clear_where_its_advice_is_taken(examples: Path, run: Run) -> None:
    printed = run(examples / "quickstart.py", "--steps", 60, "--lr", 0.001, "--warmup", 20)
    assert re.search(r"nothing found; \d+ of \d+ rules could look", printed)
    assert losses(printed)[-1] < losses(printed)[0]


@pytest.mark.slow
def test_read_a_log_says_what_is_there(examples: Path, run: Run, tmp_path: Path) -> None:
    for steps in (30, 20):
        run(examples / "quickstart.py", "--steps", steps)
    printed = run(examples / "read_a_log.py")
    assert "20 steps, 7 tensors" in printed
    assert "attempt 0: 30 steps" in printed and "attempt 1: 20 steps" in printed
    assert "holds no loss_scale" in printed and "GradScaler" in printed
    assert len(re.findall(r"^tensors-\d+\.npy: steps \d+ to (?:30|20), largest", printed, re.MULTILINE)) == 2

    recorded = stabkit.load(tmp_path / "runs/quickstart")
    with open(tmp_path / "runs/read_a_log/steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == recorded.steps.tolist()
    assert [float(row["loss"]) for row in rows] == recorded.series("loss").values.tolist()

    ratios = [float(number) for number in re.findall(r"^ {4}\S+ +(\S+)$", printed, re.MULTILINE)]
    assert len(ratios) == 5 and ratios == sorted(ratios, reverse=True)


def test_custom_rule_finds_the_cold_layer(examples: Path, run: Run) -> None:
    printed = run(examples / "custom_rule.py", "--steps", 40)
    assert "MY101 cold-layer  steps 20–40, ongoing at the end" in printed
    assert "Look at the rate of parameter group 1, which 4.weight is in." in printed


@pytest.mark.slow
def test_custom_rule_says_nothing_of_a_healthy_run(examples: Path, run: Run) -> None:
    printed = run(examples / "custom_rule.py", "--steps", 40, "--healthy")
    assert "clear" in printed and "cold-layer" not in printed


@pytest.mark.slow
def test_custom_rule_has_a_page(examples: Path, run: Run) -> None:
    printed = run(examples / "custom_rule.py", "--page")
    assert printed.startswith("MY101 cold-layer  warning") and "Known false alarms" in printed
    assert "update_ratio per tensor, at least 20 steps" in printed


def test_stop_on_error_ends_the_training_and_names_the_batch(examples: Path, run: Run, tmp_path: Path) -> None:
    printed = run(examples / "stop_on_error.py")
    assert re.search(r"^error SK301 nonfinite-value: .* at step 41\b.*\(batch part-0041\)$", printed, re.MULTILINE)
    assert "go back to a checkpoint at or before step 40" in printed
    ended = re.search(r"ended after step (\d+) of 3000", printed)
    assert ended and 41 <= int(ended[1]) < 3000


@pytest.mark.slow
def test_stop_on_error_lets_a_healthy_training_end_by_itself(examples: Path, run: Run) -> None:
    assert "ended after step 60 of 60" in run(examples / "stop_on_error.py", "--healthy", "--steps", 60)


@pytest.mark.slow
def test_llama_learns_and_is_healthy(examples: Path, run: Run, tmp_path: Path) -> None:
    printed = run(examples / "llama.py", "--batch", 2, "--steps", 80)
    assert losses(printed)[-1] < 0.65 * losses(printed)[0]
    run("-m", "stabkit", "analyze", tmp_path / "runs/llama", code=0)

    log = stabkit.load(tmp_path / "runs/llama")
    assert log.table("weight_decay").values[0].tolist() == [0.1, 0.0]
    assert {tensor.role for tensor in log.tensors if tensor.group == 1} == {"norm"}
    assert log.series("clip_max_norm").values[0] == 1.0
    assert sum(tensor.numel for tensor in log.tensors) == pytest.approx(1e6, rel=0.1)


@pytest.mark.slow
def test_llama_in_bfloat16_with_a_tied_head_and_accumulation(examples: Path, run: Run, tmp_path: Path) -> None:
    run(examples / "llama.py", "--batch", 1, "--steps", 2, "--accumulate", 2, "--tied", "--precision", "bf16")
    log = stabkit.load(tmp_path / "runs/llama")
    assert log.series("backward_count").values.tolist() == [2.0, 2.0]
    assert any("head.weight" in (tensor.name, *tensor.aliases) and tensor.aliases for tensor in log.tensors)


@pytest.mark.slow
def test_llama_sizes_are_what_they_are_called(examples: Path, run: Run) -> None:
    count = "import sys, torch; sys.path.insert(0, sys.argv[1]); import llama; torch.set_default_device('meta')\n"
    count += "for size in llama.SIZES.values(): print(sum(p.numel() for p in llama.Llama(*size, tied=False).parameters()))"
    counts = [int(line) for line in run("-c", count, examples).split()]
    assert counts == pytest.approx([1e6, 10e6, 100e6], rel=0.1)


@pytest.mark.slow
def test_ddp_under_torchrun_names_the_rank_with_the_bad_batch(examples: Path, run: Run, tmp_path: Path) -> None:
    printed = run(*TORCHRUN, examples / "ddp.py", "--bad-rank", 1)
    assert "60 steps of 2 processes" in printed and "it began on rank 1 alone" in printed
    logdir = tmp_path / "runs/ddp"
    assert len(list(logdir.glob("events.out.tfevents*"))) == 1, "rank 0 alone writes for TensorBoard"
    log = stabkit.load(logdir)
    assert log.notes == () and log.facts["world_size"] == 2 and sorted(log.ranks) == [0, 1]


@pytest.mark.slow
def test_ddp_with_shards_under_torchrun(examples: Path, run: Run, tmp_path: Path) -> None:
    printed = run(*TORCHRUN, examples / "ddp.py", "--shard", "--steps", 20)
    assert "20 steps of 2 processes" in printed
    log = stabkit.load(tmp_path / "runs/ddp")
    assert log.has("grad_norm") and log.has("update_ratio", "tensor")
    assert [event["what"] for event in log.events if event["event"] == "not_shown"] == ["norms in TensorBoard"]
