"""What the README shows is true: its commands run, its Python runs, its table is the catalogue, its output is real."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import stabkit
from stabkit.analyzers import ANALYZERS
from stabkit.demo import HEALTHY, NO_WARMUP, train


def blocks(root: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def commands(root: Path) -> list[str]:
    """Every command line the README shows."""
    return [line[2:] for block in blocks(root, "console") for line in block.splitlines() if line.startswith("$ ")]


def logs_of_other_tools(folder: Path) -> None:
    """The files that the README names."""
    lines = [f"{step},{3 / step:.4f}" for step in range(1, 31)]
    table = "\n".join(["it,train/ce", *lines]) + "\n"
    (folder / "outputs").mkdir()
    for name in ("metrics.csv", "outputs/metrics.csv"):
        (folder / name).write_text(table)
    with gzip.open(folder / "train.log.gz", "wt") as file:
        file.writelines(f"iter {line.split(',')[0]}: loss {line.split(',')[1]}, time 12.00ms\n" for line in lines)
    with SummaryWriter(str(folder / "runs" / "tensorboard")) as writer:
        for line in lines:
            writer.add_scalar("loss", float(line.split(",")[1]), int(line.split(",")[0]))


@pytest.mark.slow
def test_every_command_is_one_that_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The make targets exist and are what CI runs or what the demo test runs; every other command is run here."""
    from dataclasses import replace

    for name, recipe in {"healthy": HEALTHY, "no-warmup": NO_WARMUP}.items():
        train(replace(recipe, steps=30), tmp_path / "runs" / "demo" / name)
    train(replace(HEALTHY, steps=30), tmp_path / "runs" / "exp1")
    logs_of_other_tools(tmp_path)
    makefile = (root / "Makefile").read_text()
    for command in commands(root):
        words = shlex.split(command)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
            continue
        assert words[0] == "stabkit"
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert done.stdout.strip()


def test_the_python_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(4, 2)
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(5)],
        "loss_function": nn.functional.cross_entropy,
    }
    for block in blocks(root, "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert stabkit.load("runs/exp1").steps.tolist() == [1, 2, 3, 4, 5]
    assert names["ratios"].values.shape == (6, 2)  # with the row of step 0, which holds the weights at entry


def test_the_table_is_the_catalogue(root: Path) -> None:
    rows = re.findall(r"^\| (SK\d+) \| ([\w-]+) \|", (root / "README.md").read_text(), re.MULTILINE)
    assert rows == [(a.rule.code, a.rule.name) for a in ANALYZERS]


@pytest.mark.slow
def test_the_output_shown_is_what_the_demo_gives(root: Path, tmp_path: Path) -> None:
    """Numbers may differ in the last digit from machine to machine; the words and the rounded numbers may
    not. The little curve may: a loss after 200 steps at a rate too high is another one with every number of threads."""
    train(NO_WARMUP, tmp_path / "runs" / "demo" / "no-warmup")
    done = subprocess.run(
        [sys.executable, "-m", "stabkit", "analyze", "runs/demo/no-warmup"], cwd=tmp_path, capture_output=True, text=True
    )
    shown, printed = (re.sub(r"loss \S+ [▁-█]+ \S+", "loss …", text) for text in (blocks(root, "text")[0], done.stdout))
    assert done.returncode == 1
    assert printed.startswith(shown.rstrip("\n")), done.stdout
