"""A formula is believed only after it has told what steps really did, and no longer than it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
from stabkit.errors import MissingMetricError
from stabkit.hooks import trust
from tests.optimizers.handmade import AnyAdam, BoundedAdamW, CourseAdamW, HuggingFaceAdamW, PlainAdam
from tests.optimizers.training import STEPS, Entry, Truth, train

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


def watch(make: Make, logdir: Path, **about: Any) -> tuple[stabkit.RunLog, Truth, np.ndarray]:
    """The run, the truth, and which steps' updates [steps, tensors] were recorded, by the applied or the intended one."""
    entry = Entry(make, **about)
    truth = train(entry, logdir)
    assert truth.bits == train(entry).bits
    run = stabkit.load(logdir)
    assert not [event for event in run.events if event["event"] == "fault"]
    ratios = run.table("update_ratio").values[1:] * truth.table("weight")
    known = ~np.isnan(ratios)
    np.testing.assert_allclose(ratios[known], truth.table("moved")[known], rtol=1e-3)
    return run, truth, known


def told(run: stabkit.RunLog) -> list[dict[str, Any]]:
    return [dict(event) for event in run.events if event["event"] == "update-measured"]


@pytest.mark.parametrize("decay", ["before", "after", "coupled"])
@pytest.mark.parametrize(
    "kind", ["corrects", "corrects ahead", "corrects inner", "corrects ahead inner", "does not"], ids=lambda kind: kind
)
def test_every_way_of_writing_an_adam_is_recognised(logdir: Path, decay: str, kind: str) -> None:
    options = {name: name in kind.split() for name in ("corrects", "ahead", "inner")}
    run, truth, _ = watch(lambda params: AnyAdam(params, decay=decay, **options), logdir)
    assert not told(run)
    np.testing.assert_allclose(run.table("update_norm").values[-3:], truth.table("moved")[-3:], rtol=1e-4)
    assert np.isfinite(run.table("rms_ratio").values[-3:]).all()


def test_a_subclass_with_another_update_is_found_out_and_told_once(logdir: Path) -> None:
    run, _, known = watch(BoundedAdamW, logdir)
    (event,) = told(run)
    assert event["why"].startswith("BoundedAdamW does not change its weights as Adam would") and event["step"] == 1
    assert event["tensor"].startswith("body.") and event["optimizer"] == 0
    assert known[:, [0, 1, 4]].all()
    with pytest.raises(MissingMetricError, match="its weights do not move as the moments in its state say"):
        run.table("update_norm")
    assert not run.has("exp_avg_norm", "tensor"), "what its moments mean is not known"


@pytest.mark.parametrize("make", [BoundedAdamW, HuggingFaceAdamW])
def test_steps_at_rate_zero_prove_nothing(logdir: Path, make: Make) -> None:
    """Under a warmup from zero any formula tells the first step right."""
    run, _, _ = watch(make, logdir, settings=lambda step: {"lr": 0.0 if step < 4 else 1e-3})
    if make is BoundedAdamW:
        assert [event["step"] for event in told(run)] == [4]
        assert not run.has("update_norm", "tensor")
    else:
        assert not told(run)
        assert np.isnan(run.table("update_norm").values[1:5]).all(), "not before the second proof, in step 5"
        assert np.isfinite(run.table("update_norm").values[6:]).all()


def patched(params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Exactly torch's AdamW, whose step somebody has replaced."""
    optimizer = torch.optim.AdamW(params)
    original = torch.optim.AdamW.step.__wrapped__  # type: ignore[attr-defined]

    def half(self: Any, closure: Any = None) -> Any:
        before = [p.detach().clone() for p in params]
        loss = original(self, closure)
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                p.lerp_(old, 0.5)
        return loss

    optimizer.step = torch.optim.Optimizer.profile_hook_step(half).__get__(optimizer)  # type: ignore[method-assign]
    return optimizer


def test_torch_own_is_not_believed_blindly(logdir: Path) -> None:
    run, _, known = watch(patched, logdir)
    (event,) = told(run)
    assert event["step"] == 1
    assert not known[0].any() and known[1:].all(), "of the step it was found out in nothing was copied"
    assert not run.has("exp_avg_norm", "tensor") and not run.has("update_norm", "tensor")
    assert np.isfinite(run.table("grad_norm_used").values[1:]).all()


class Turning(HuggingFaceAdamW):
    """An optimizer that begins to do something else."""

    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.count += 1
        loss = super().step(closure)
        if self.count >= 5:
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)
        return loss


def test_it_is_tried_again_now_and_then(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out in the first trial after it turned."""
    monkeypatch.setattr(trust, "_AGAIN", 2)
    truth = train(Entry(Turning), logdir)
    run = stabkit.load(logdir)
    (event,) = told(run)
    assert event["step"] in (5, 6)
    applied = run.table("applied_update_norm").values[1:]
    np.testing.assert_allclose(applied[6:], truth.table("moved")[6:], rtol=1e-3)


@pytest.mark.parametrize("make", [CourseAdamW, PlainAdam])
def test_decay_that_begins_later_is_told_apart_then(logdir: Path, make: Make) -> None:
    """Without decay no trial can tell how an optimizer decays."""
    run, _, known = watch(make, logdir, settings=lambda step: {"lr": 0.05, "weight_decay": 0.5 if step > 4 else 0.0})
    assert not told(run) and np.isfinite(run.table("update_norm").values[-1]).all()
    assert known[:, [0, 1, 4]].all()


@pytest.mark.parametrize("cls", [torch.optim.AdamW, HuggingFaceAdamW])
def test_weights_of_sixteen_bits_prove_nothing(logdir: Path, cls: Any) -> None:
    """They are moved by their rounding more than by the update: torch's own is believed, another is measured."""
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 20).bfloat16()
    optimizer = cls(model.parameters(), lr=1e-4, eps=1e-6)
    moved = []
    with stabkit.watch(model, optimizer, logdir, tensorboard=False):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(5, 30, dtype=torch.bfloat16)).float().square().mean().backward()
            before = [p.detach().double() for p in model.parameters()]
            optimizer.step()
            moved.append([float((p.detach().double() - b).norm()) for p, b in zip(model.parameters(), before, strict=True)])
    run = stabkit.load(logdir)
    assert not [event for event in run.events if event["event"] in ("fault", "update-measured")]
    assert run.has("update_norm", "tensor") == (cls is torch.optim.AdamW)
    if cls is HuggingFaceAdamW:
        np.testing.assert_allclose(run.table("applied_update_norm").values[1:], moved, rtol=1e-6)


def test_trials_are_rare(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch's AdamW two in a thousand measured steps, and nothing is copied in the others."""
    made: list[int] = []
    original = trust.Probe.__init__

    def counted(self: Any, *args: Any) -> None:
        made.append(len(args[0]))
        original(self, *args)

    monkeypatch.setattr(trust.Probe, "__init__", counted)
    train(Entry(torch.optim.AdamW), logdir)
    assert len(made) == 2 and STEPS > 2


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
def test_scaled_gradients_are_unscaled_and_a_skipped_step_moves_nothing(logdir: Path, cls: Any, options: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = cls(model.parameters(), lr=1e-2, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    grads, moved = [], []
    with stabkit.watch(model, optimizer, logdir, tensorboard=False):
        for step in range(1, 6):
            optimizer.zero_grad()
            scale = scaler.get_scale()
            scaler.scale(model(torch.randn(4, 6)).square().mean() * (1e36 if step == 3 else 1)).backward()
            grads.append([float((p.grad.double() / scale).norm()) for p in model.parameters()])
            before = [p.detach().double() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            moved.append([float((p.detach().double() - b).norm()) for p, b in zip(model.parameters(), before, strict=True)])
    run = stabkit.load(logdir)
    assert run.series("skipped").values.tolist() == [0, 0, 1, 0, 0]
    fine = [0, 1, 3, 4]
    np.testing.assert_allclose(run.table("grad_norm_used").values[1:][fine], np.array(grads)[fine], rtol=1e-4)
    np.testing.assert_allclose(run.table("applied_update_norm").values[1:], moved, rtol=1e-4)
    assert moved[2] == [0.0, 0.0] and not run.has("update_norm", "tensor")
    assert run.table("grad_nonfinite").values[3].sum() > 0
