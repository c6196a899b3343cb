"""Findings name the batch: whichever line of the loop told it, and to whichever optimizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stabkit
from stabkit.report.json import document, render

STEPS, BAD = 60, 55


def train(logdir: Path, where: str, micro: int = 1, start: int = 0, state: Any = None) -> dict[str, Any]:
    """Train, naming each batch at a place in the loop: "top", "middle" (after backward) or "bottom"."""
    torch.manual_seed(start)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if state:
        optimizer.load_state_dict(state)
    with stabkit.watch(model, optimizer, logdir, tensorboard=False) as watch:
        for step in range(start + 1, start + STEPS + 1):
            optimizer.zero_grad()
            for part in range(micro):
                name = f"b{step}" + "abc"[part] * (micro > 1)
                if where == "top":
                    watch.log(batch=name)
                (model(torch.randn(8, 4)).square().mean() * (1000.0 if step == start + BAD else 1.0) / micro).backward()
                if where == "middle":
                    watch.log(batch=name)
                if part == micro - 1:
                    optimizer.step()
                if where == "bottom":
                    watch.log(batch=name)
    return optimizer.state_dict()


@pytest.mark.parametrize("where", ["top", "middle", "bottom"])
@pytest.mark.parametrize("micro", [1, 3])
def test_each_step_has_its_own_batches(where: str, micro: int, tmp_path: Path) -> None:
    train(tmp_path / "run", where, micro)
    expected = {step: tuple(f"b{step}" + "abc"[part] * (micro > 1) for part in range(micro)) for step in range(1, STEPS + 1)}
    run = stabkit.load(tmp_path / "run")
    assert run.stream.batches == expected
    assert run.until(7).stream.batches == {step: names for step, names in expected.items() if step <= 7}


@pytest.mark.parametrize("where", ["top", "bottom"])
def test_a_resumed_run_goes_on_naming(where: str, tmp_path: Path) -> None:
    state = train(tmp_path / "run", where)
    train(tmp_path / "run", where, start=STEPS, state=state)
    run = stabkit.load(tmp_path / "run")
    assert run.attempts == 1
    assert run.stream.batches == {step: (f"b{step}",) for step in range(1, 2 * STEPS + 1)}


def test_a_finding_names_it_in_message_and_json(tmp_path: Path) -> None:
    train(tmp_path / "run", "top")
    diagnosis = stabkit.analyze(stabkit.load(tmp_path / "run"))
    spike = next(finding for finding in diagnosis.findings if finding.first_step == BAD)
    assert f"(batch b{BAD})" in spike.message and spike.batches == {BAD: (f"b{BAD}",)}
    found = [finding for run in document([diagnosis])["runs"] for outcome in run["outcomes"] for finding in outcome["findings"]]
    assert {str(BAD): [f"b{BAD}"]} in [finding["batches"] for finding in found]
    json.loads(render([diagnosis]))


def test_without_names_nothing_is_named(tmp_path: Path) -> None:
    train(tmp_path / "run", "nowhere")
    diagnosis = stabkit.analyze(stabkit.load(tmp_path / "run"))
    assert diagnosis.findings and not any(finding.batches or "batch" in finding.message for finding in diagnosis.findings)


@pytest.mark.parametrize("where", ["top", "bottom"])
def test_two_optimizers_that_take_turns_share_a_batch(where: str, tmp_path: Path) -> None:
    generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
    optimizers = [torch.optim.Adam(model.parameters()) for model in (generator, critic)]
    with stabkit.watch({"g": generator, "c": critic}, optimizers, tmp_path / "run", tensorboard=False) as watch:
        for step in range(1, 11):
            if where == "top":
                watch.log(batch=step)
            optimizers[1].zero_grad()
            critic(generator(torch.randn(8, 2)).detach()).mean().backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            critic(generator(torch.randn(8, 2))).mean().backward()  # also reaches the critic
            optimizers[0].step()
            if where == "bottom":
                watch.log(batch=step)
    run = stabkit.load(tmp_path / "run")
    assert [stream.batches for stream in run.streams] == [{step: (str(step),) for step in range(1, 11)}] * 2
