"""The rules on clipping, loss scaling and accumulation: what looks like a mistake and is none, and their borders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from analyzer_runs import flat, make_run
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import stabkit
from stabkit.analyzers import analyze
from stabkit.finding import Finding, Severity, State, Status
from tests.cases.wiring.lookalikes import FINE, STEPS, Parts, update

CODES = tuple(f"SK40{i}" for i in range(1, 9))


def judged(logdir: Path, loop: Callable[[Parts], None], alone: bool = True) -> list[tuple[str, int]]:
    """(code, optimizer) of what these rules find in a loop over both models with one optimizer, or with two."""
    torch.manual_seed(0)
    parts = Parts()
    with stabkit.watch(parts.both, parts.optimizer if alone else parts.optimizers, logdir, tensorboard=False):
        loop(parts)
    run = stabkit.load(logdir)
    assert not [event for event in run.events if event["event"] == "fault"]
    views = [run.optimizer(i) for i in range(len(run.streams))]
    return [(f.rule, i) for i, view in enumerate(views) for f in found(view)]


def found(run: stabkit.RunLog) -> list[Finding]:
    """What these rules find in one view of a run."""
    alone = stabkit.RunLog(source=run.source, streams=(run.stream,), events=run.events)
    return [f for f in flat(analyze(alone)) if f.rule in CODES]


@pytest.mark.parametrize("name", FINE)
def test_what_is_right_is_blamed_for_nothing(name: str, tmp_path: Path) -> None:
    assert judged(tmp_path, FINE[name]) == []


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("together", [True, False])
def test_two_optimizers_share_a_scaler(first: int, together: bool, tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        order = [first, 1 - first]
        for _ in range(STEPS):
            if together:
                parts.scaler.scale(parts.whole()).backward()
            for i in order:
                if not together:
                    parts.scaler.scale(parts.loss(i)).backward()
                parts.scaler.unscale_(parts.optimizers[i])
                clip_grad_norm_(parts.models[i].parameters(), 0.5)
                parts.scaler.step(parts.optimizers[i])
                parts.optimizers[i].zero_grad()
            parts.scaler.update()

    assert judged(tmp_path, loop, alone=False) == []


def test_of_two_optimizers_the_one_that_was_not_unscaled_is_blamed(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        for _ in range(STEPS):
            parts.scaler.scale(parts.whole()).backward()
            parts.scaler.unscale_(parts.optimizers[0])
            clip_grad_norm_(parts.both.parameters(), 0.5)
            for optimizer in parts.optimizers:
                parts.scaler.step(optimizer)
                optimizer.zero_grad()
            parts.scaler.update()

    assert judged(tmp_path, loop, alone=False) == [("SK401", 1)]


def test_a_gan_is_blamed_for_nothing(tmp_path: Path) -> None:
    """As in PyTorch's DCGAN tutorial: two losses of the discriminator, and the generator's reaches it too."""

    def loop(parts: Parts) -> None:
        (generator, discriminator), (g, d) = parts.models, parts.optimizers
        for _ in range(12):
            fake = generator(torch.randn(3, 4))
            d.zero_grad()
            F.softplus(-discriminator(torch.randn(3, 4))).mean().backward()
            F.softplus(discriminator(fake.detach())).mean().backward()
            clip_grad_norm_(discriminator.parameters(), 0.5)
            d.step()
            g.zero_grad()
            F.softplus(-discriminator(fake)).mean().backward()
            clip_grad_norm_(parts.both.parameters(), 0.5)
            g.step()

    assert judged(tmp_path, loop, alone=False) == []


def test_two_optimizers_in_turn_of_which_one_goes_unclipped(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        for _ in range(STEPS):
            for i, optimizer in enumerate(parts.optimizers):
                parts.loss(i).backward()
                if i == 0:
                    clip_grad_norm_(parts.both.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()

    assert judged(tmp_path, loop, alone=False) == []


def test_another_runtime_error_after_one_good_step_is_not_blamed_on_the_scaler(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        parts.scaler.scale(parts.whole()).backward()
        update(parts)
        with pytest.raises(RuntimeError):
            parts.models[0](torch.randn(3, 5))

    assert judged(tmp_path, loop) == []


def test_an_overflow_taken_into_the_weights_makes_an_error_of_it_and_holds_what_follows(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        for step in range(STEPS):
            loss = parts.whole() * (float("inf") if step == 4 else 1.0)
            parts.scaler.scale(loss).backward()
            parts.scaler.unscale_(parts.optimizer)
            parts.optimizer.step()
            parts.scaler.update()
            parts.optimizer.zero_grad()

    assert judged(tmp_path, loop) == [("SK402", 0)]
    run = stabkit.load(tmp_path)
    (before,) = found(run.until(4))
    (after,) = found(run)
    assert (before.severity, after.severity) == (Severity.WARNING, Severity.ERROR)
    assert before.first_step == after.first_step == 3 and after.event_step == 5
    (top,) = [f for f in analyze(run).findings if f.severity is Severity.ERROR]
    assert (top.rule, [c.rule for c in top.consequences]) == ("SK402", ["SK301"])


def test_clipping_by_value_forgets_the_scale_too(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        for _ in range(STEPS):
            parts.scaler.scale(parts.whole()).backward()
            clip_grad_value_(parts.both.parameters(), 0.5)
            update(parts)

    assert judged(tmp_path, loop) == [("SK401", 0)]
    (finding,) = found(stabkit.load(tmp_path))
    assert [e.metric for e in finding.evidence] == ["clip_scale", "clip_value"]
    assert "one of the gradient, not 0.000488" in finding.advice  # 0.5 / 1024


def test_a_mistake_that_was_mended_is_told_as_over(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        for step in range(12):
            parts.scaler.scale(parts.whole()).backward()
            if step >= 5:
                parts.scaler.unscale_(parts.optimizer)
            clip_grad_norm_(parts.both.parameters(), 0.5)
            update(parts)

    judged(tmp_path, loop)
    (finding,) = found(stabkit.load(tmp_path))
    assert (finding.first_step, finding.last_step, finding.state) == (1, 5, State.RECOVERED)


def test_limits_that_are_not_known_are_not_judged(tmp_path: Path) -> None:
    def loop(parts: Parts) -> None:
        for _ in range(STEPS):
            parts.scaler.scale(parts.whole()).backward()
            for model in parts.models:
                clip_grad_norm_(model.parameters(), 0.5)
            update(parts)

    judged(tmp_path, loop)
    outcome = analyze(stabkit.load(tmp_path)).outcome("SK401")
    assert outcome.status is Status.NOT_APPLICABLE and "limits are not known" in outcome.reason


def test_what_was_not_recorded_is_not_called_clear() -> None:
    """A log of another tool, or an older one, has none of the facts; a plain loop neither scales nor clips."""
    outcomes = analyze(make_run()).outcomes
    assert {o.status for o in outcomes if o.rule in CODES} == {Status.NOT_APPLICABLE}


def counted(count: list[int], dropped: dict[int, int] | None = None, other: int | None = None) -> list[tuple[str, int]]:
    """(message, first step) of what SK408 finds for so many backward calls a step, of two kinds of loss in `other`."""
    n = len(count)
    lost = np.zeros(n)
    for step, calls in (dropped or {}).items():
        lost[step - 1] = calls
    kinds = np.where(np.arange(1, n + 1) == other, 2, 1)
    values = {"backward_count": np.array(count), "dropped_backwards": lost, "loss_kinds": kinds}
    outcome = analyze(make_run(steps=np.arange(1, n + 1), **values)).outcome("SK408")
    assert outcome.status in (Status.FOUND, Status.CLEAR)
    return [(f.message, f.first_step) for f in outcome.findings]


EIGHT = [4] * 8


def test_what_is_left_over_and_what_is_not() -> None:
    assert counted([*EIGHT, 6, 4]) == [("step 9 is of 6 micro-batches instead of 4: 2 were left over before it", 10)]
    assert counted([*EIGHT, 5, 4, *EIGHT, 5, 4])[0][1] == 10, "told once"
    assert counted([*EIGHT[:7], 6, 4]) == [], "too few to call 4 the usual number"
    assert counted([*EIGHT, 6]) == [], "it may go on with 6"
    assert counted([*EIGHT, 6, 6, 6, 6]) == [], "it did"
    assert counted([*EIGHT, 8, 4]) == [], "two batches in one step"
    assert counted([*EIGHT, 2, 4, *EIGHT, 2]) == [], "the last window was stepped"
    assert counted([1] * 8 + [2, 1]) == [], "no accumulation"
    assert counted([*EIGHT, 6, 4], other=9) == [], "another loss was added"
    assert counted([*EIGHT, 4, 4], {9: 3}) == [("3 micro-batches before step 9 did not fill a step of 4: thrown away", 9)]
    assert counted([*EIGHT, 4, 4], {9: 4}) == [], "as many as a step: thrown away on purpose"
    assert counted(EIGHT + EIGHT, dict.fromkeys(range(1, 17), 1)) == [], "a discriminator, at every step"
