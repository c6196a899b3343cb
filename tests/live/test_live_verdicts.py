"""Verdicts while a run goes on: what is told, when, and that the training does not notice."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_training import BAD, children, loader, told_codes, train

import stabkit
from stabkit.errors import UsageError
from stabkit.finding import Finding, Severity
from stabkit.live import verdicts
from stabkit.live.follow import Follower
from tests.cases.recipes import CASES, run_case

Key = tuple[str, int, tuple[str, ...]]


def keys(findings: Any) -> set[Key]:
    """What makes a finding the same one, consequences included."""
    found = set()
    for finding in findings:
        found |= {(finding.rule, finding.first_step, finding.tensors[:1])} | keys(finding.consequences)
    return found



def slowly(*names: str) -> list[Any]:
    """Cases that take seconds each."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["no_warmup", "growing_until_nan", *slowly("healthy", "gradient_spike", "bad_batches")])
def test_live_and_offline_agree_on_a_real_run(name: str, tmp_path: Path) -> None:
    told: list[Finding] = []
    run = run_case(CASES[name], tmp_path / "run", on_finding=told.append)
    assert keys(told) == keys(stabkit.analyze(run).findings)
    assert set(CASES[name].expect) <= told_codes(told)
    assert not [event for event in run.events if event["event"].startswith("live")]


@pytest.mark.parametrize("name", ["no_warmup", *slowly("growing_until_nan", "zero_division", "spontaneous_spike")])
def test_looks_after_every_step_tell_what_one_look_at_the_end_tells(name: str, tmp_path: Path) -> None:
    told: dict[Key, int] = {}
    followers: list[Follower] = []

    def look(step: int) -> None:
        for finding in followers[0].look() if followers else []:
            for key in keys([finding]):
                told.setdefault(key, step)

    followers.append(Follower(tmp_path / "run"))
    run = run_case(CASES[name], tmp_path / "run", after_step=look)
    look(len(run.steps) + 1)
    assert set(told) == keys(stabkit.analyze(run).findings)
    late = {key: step for key, step in told.items() if step > key[1] and key[0] not in ("SK416", "SK410")}
    assert not late, "a finding is told at the very step that it names as the first"


def test_it_is_told_within_seconds_of_the_event(tmp_path: Path) -> None:
    told: list[tuple[Finding, float]] = []
    passed: dict[int, float] = {}

    def until(step: int) -> bool:
        passed[step] = time.monotonic()
        return bool(told)

    train(tmp_path / "run", 2000, lambda finding: told.append((finding, time.monotonic())), BAD, until, pause=0.02)
    finding, when = told[0]
    assert (finding.rule, finding.first_step, finding.severity) == ("SK301", BAD, Severity.ERROR)
    assert when - passed[BAD] < 10  # seconds, on a machine that others work on too
    assert max(passed) < 2000, "the loop could be ended by it"


@pytest.mark.parametrize("bad", [0, BAD])
def test_bits_are_those_of_an_unwatched_run(bad: int, tmp_path: Path) -> None:
    told: list[Finding] = []
    plain = train(tmp_path / "none", bad=bad, watched=False)
    state = torch.get_rng_state()
    live = train(tmp_path / "run", bad=bad, on_finding=told.append)
    assert torch.equal(state, torch.get_rng_state())
    assert all(plain[name].numpy().tobytes() == live[name].numpy().tobytes() for name in plain)
    assert bool(told) == bool(bad)


def raises(finding: Finding) -> None:
    raise ValueError("the user's own fault")


def exits(finding: Finding) -> None:
    sys.exit(3)


def interrupts(finding: Finding) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("callback", [raises, exits, interrupts])
def test_a_callback_that_raises_is_noted_and_goes_no_further(
    callback: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(tmp_path / "none", bad=BAD, watched=False)
    weights = train(tmp_path / "run", bad=BAD, on_finding=callback)
    assert all(plain[name].numpy().tobytes() == weights[name].numpy().tobytes() for name in plain)
    events = [event for event in stabkit.load(tmp_path / "run").events if event["event"] == "live_fault"]
    assert len(events) == 1 and events[0]["what"] == "callback" and "on_finding raised" in events[0]["why"]
    assert sum("on_finding raised" in record.message for record in caplog.records) == 1


def test_a_callback_that_hangs_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verdicts, "PATIENCE", 1.0)
    hanging = threading.Event()

    def hang(finding: Finding) -> None:
        hanging.set()
        time.sleep(30)

    train(tmp_path / "run", 2000, hang, BAD, until=lambda step: hanging.is_set(), pause=0.01)
    assert "was not waited for" in caplog.text, "or this test would have taken thirty seconds"
    assert not children(), "what judged the run is gone"


def test_warnings_and_errors_are_printed_and_infos_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stabkit"):
        train(tmp_path / "run", bad=BAD, on_finding=lambda finding: None)
    printed = [(record.levelno, record.message) for record in caplog.records]
    assert (logging.ERROR, True) in [(level, f"error SK301 nonfinite-value at step {BAD}" in text) for level, text in printed]
    assert all(level == logging.INFO for level, text in printed if text.startswith("stabkit: info"))


def test_two_runs_at_once_are_told_apart(tmp_path: Path) -> None:
    told: dict[str, list[Finding]] = {"sick": [], "well": []}
    sick, well = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    first, second = torch.optim.Adam(sick.parameters()), torch.optim.Adam(well.parameters())
    with (
        stabkit.watch(sick, first, tmp_path / "sick", on_finding=told["sick"].append),
        stabkit.watch(well, second, tmp_path / "well", on_finding=told["well"].append),
    ):
        for step in range(1, 81):
            for model, optimizer in ((sick, first), (well, second)):
                optimizer.zero_grad()
                loss = model(torch.randn(8, 4)).square().mean()
                (loss * (torch.nan if step == BAD and model is sick else 1.0)).backward()
                optimizer.step()
    assert "SK301" in told_codes(told["sick"]) and "SK301" not in told_codes(told["well"])


def test_what_an_earlier_process_recorded_is_not_told_again(tmp_path: Path) -> None:
    first: list[Finding] = []
    again: list[Finding] = []
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for told, bad in ((first, 50), (again, 100)):
        with stabkit.watch(model, optimizer, tmp_path / "run", on_finding=told.append):
            for step in range(1, 61):
                optimizer.zero_grad()
                loss = model(torch.randn(8, 4)).square().mean() * (1000.0 if step + 60 * (told is again) == bad else 1.0)
                loss.backward()
                optimizer.step()
    run = stabkit.load(tmp_path / "run")
    assert run.attempts == 1 and len(run.steps) == 120
    everything = keys(stabkit.analyze(run).findings)
    assert keys(first) | keys(again) == everything
    assert keys(again) == {key for key in everything if key[1] > 60}, "what the second process recorded, and no more"
    assert keys(first) and keys(again), "the case is what it says"


@pytest.mark.parametrize("context", ["fork", *slowly("spawn")])
def test_workers_of_a_data_loader_do_not_matter(context: str, tmp_path: Path) -> None:
    told: list[Finding] = []
    plain = train(tmp_path / "none", bad=BAD, batches=loader(), watched=False)
    weights = train(tmp_path / "run", bad=BAD, batches=loader(context), on_finding=told.append)
    assert all(plain[name].numpy().tobytes() == weights[name].numpy().tobytes() for name in plain)
    assert "SK301" in told_codes(told)


def test_without_a_process_a_thread_judges_and_the_log_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    told: list[Finding] = []
    train(tmp_path / "run", bad=BAD, on_finding=told.append)
    run = stabkit.load(tmp_path / "run")
    assert keys(told) == keys(stabkit.analyze(run).findings) and told
    assert [event["event"] for event in run.events if event["event"].startswith("live")] == ["live_thread"]


def test_a_judging_process_that_is_killed_is_told_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill(finding: Finding) -> None:
        killed.extend(children())
        for pid in killed:
            os.kill(pid, 9)

    train(tmp_path / "run", 400, kill, bad=5, until=lambda step: len(caplog.records) > 1, pause=0.02)
    assert killed and "the process that judges the run has ended" in caplog.text
    assert not children()


def test_a_temporary_directory_can_go_away(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        train(Path(folder) / "run", 30, lambda finding: None)
    told: list[Finding] = []
    folder = tempfile.mkdtemp(dir=tmp_path)

    def remove(step: int) -> bool:
        if step == 20:
            os.rename(folder, f"{folder}.moved")
        return False

    weights = train(Path(folder) / "run", 40, told.append, until=remove)
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Checks that a test leaves no open file behind."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.usefixtures("descriptors")
def test_nothing_stays_open(tmp_path: Path) -> None:
    for number in range(3):
        train(tmp_path / f"run{number}", 10, raises, bad=5)
    assert not children()


def test_a_callback_must_be_callable(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="on_finding must be a function"):  # noqa: SIM117
        with stabkit.watch(model, logdir=tmp_path / "run", on_finding="print"):  # type: ignore[arg-type]
            pass
