"""The rules on parameters, decay and the optimizer's state (SK416 to SK421, SK105, SK306) at their borders."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analyzer_runs import make_run
from torch import nn

import stabkit
from stabkit.analyzers import ANALYZERS, analyze, judge
from stabkit.finding import Finding, Severity, State, Status
from stabkit.runlog import RunLog, TensorInfo
from tests.cases.wiring.parameters import HandWrittenAdam, Model, train

RULES = {analyzer.rule.code: analyzer for analyzer in ANALYZERS}


def model_of(**options: Any) -> Model:
    torch.manual_seed(0)
    return Model(**options)


def status(rule: str, run: RunLog) -> Status:
    return judge(RULES[rule], run).status


def only(rule: str, run: RunLog) -> Finding:
    (finding,) = judge(RULES[rule], run).findings
    return finding


# SK416, SK417


def test_a_short_run_is_told_of_forgotten_parameters_at_its_end(tmp_path: Path) -> None:
    model = model_of()
    run = train(model, torch.optim.AdamW(model.inner.parameters()), tmp_path, steps=5)
    finding = only("SK416", run)
    assert (finding.first_step, finding.tensors) == (5, ("norm.weight", "norm.bias", "outer.weight", "outer.bias"))
    assert "and 3 other parameters" in finding.message


def test_before_the_recorder_has_looked_long_enough_nothing_is_clear(tmp_path: Path) -> None:
    model = model_of()
    run = train(model, torch.optim.AdamW(model.parameters()), tmp_path, steps=22)
    for rule in ("SK416", "SK417"):
        assert [status(rule, run.until(step)) for step in (19, 20, 22)] == [
            Status.NOT_APPLICABLE, Status.CLEAR, Status.CLEAR
        ]  # fmt: skip


def test_frozen_parameters_are_neither_forgotten_nor_cut_off(tmp_path: Path) -> None:
    model = model_of(spare=True)
    model.inner.requires_grad_(False)
    model.spare.requires_grad_(False)
    run = train(model, torch.optim.AdamW(model.parameters()), tmp_path, steps=22)
    assert (status("SK416", run), status("SK417", run)) == (Status.CLEAR, Status.CLEAR)


def test_a_parameter_that_is_reached_only_now_and_then_is_reached(tmp_path: Path) -> None:
    """Such as an expert that few tokens choose."""
    model = model_of(spare=True)
    optimizer = torch.optim.AdamW(model.parameters())
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for step in range(22):
            model.zero_grad()
            loss = model(torch.randn(4, 8)).square().mean()
            (loss + model.spare(torch.randn(4, 8)).square().mean() if step == 12 else loss).backward()
            optimizer.step()
    assert status("SK417", stabkit.load(tmp_path)) is Status.CLEAR


def test_a_sparse_gradient_is_a_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(22):
            model.zero_grad()
            model(torch.randint(9, (4,))).sum().backward()
            optimizer.step()
    assert status("SK417", stabkit.load(tmp_path)) is Status.CLEAR


def test_gradients_that_a_closure_makes_are_seen(tmp_path: Path) -> None:
    model = model_of(spare=True)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).square().mean()
        loss.backward()
        return loss

    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            optimizer.step(closure)
    finding = only("SK417", stabkit.load(tmp_path))
    assert (finding.tensors, finding.severity) == (("spare.weight", "spare.bias"), Severity.INFO)


# SK418


COUNTING = ("AdamW", "RMSprop", "Adagrad", "Rprop", "NAdam", "RAdam", "Adamax", "ASGD", "Adadelta", "SGD")


@pytest.mark.parametrize("make", [*(getattr(torch.optim, name) for name in COUNTING), HandWrittenAdam])
def test_an_optimizer_that_counts_or_keeps_no_count_is_not_stuck(make: Any, tmp_path: Path) -> None:
    model = model_of()
    run = train(model, make(model.parameters(), lr=1e-3), tmp_path)
    assert status("SK418", run) is (Status.NOT_APPLICABLE if make is torch.optim.SGD else Status.CLEAR)


def test_a_state_that_is_made_anew_in_every_step_is_a_stuck_count(tmp_path: Path) -> None:
    class Forgetful(HandWrittenAdam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                self.state[p] = {}
            super().step()

    model = model_of()
    finding = only("SK418", train(model, Forgetful(model.parameters()), tmp_path))
    assert (finding.severity, finding.first_step, finding.evidence[0].observed) == (Severity.ERROR, 6, 1.0)


def test_steps_that_were_skipped_or_had_no_gradient_need_not_count() -> None:
    count, still = np.concatenate([np.arange(1, 51), np.full(50, 50.0)]), (np.arange(100) >= 50).astype(float)
    for skipped, backwards, found in ((still, 1.0, 0), (0.0, 1 - still, 0), (0.0, 1.0, 1)):
        run = make_run(np.full(100, 3.0), applied_steps=count, skipped=skipped + np.zeros(100),
                       backward_count=backwards + np.zeros(100))  # fmt: skip
        findings = judge(RULES["SK418"], run).findings
        assert [f.first_step for f in findings] == [55] * found


# SK419, SK420


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), Status.FOUND),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), Status.CLEAR),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), Status.NOT_APPLICABLE),
        (lambda p: HandWrittenAdam(p), Status.NOT_APPLICABLE),
    ],
)
def test_only_adam_couples_its_decay(make: Any, expected: Status, tmp_path: Path) -> None:
    model = model_of()
    assert status("SK419", train(model, make(model.parameters()), tmp_path, steps=2)) is expected


def test_adam_that_was_told_to_decouple_is_adamw(tmp_path: Path) -> None:
    model = model_of()
    try:
        optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1, decoupled_weight_decay=True)
    except TypeError:
        pytest.skip("this torch has no decoupled_weight_decay")
    assert status("SK419", train(model, optimizer, tmp_path, steps=2)) is Status.CLEAR


def test_the_decay_to_use_instead_looks_back_over_the_run(tmp_path: Path) -> None:
    model = model_of()
    run = train(model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1), tmp_path, steps=2, total_steps=20_000)
    assert only("SK419", run).advice.endswith("At a rate of 0.001, 0.05 looks back over the 20000 steps of the run.")


def test_the_default_decay_of_adamw_is_too_weak_to_be_told(tmp_path: Path) -> None:
    model = model_of()
    assert status("SK420", train(model, torch.optim.AdamW(model.parameters()), tmp_path, steps=30)) is Status.CLEAR


def test_the_pull_of_decay_is_added_up_over_the_steps() -> None:
    frozen = TensorInfo("frozen", (4,), role="bias", trainable=False)
    tensors = (TensorInfo("w", (4, 4)), TensorInfo("gain", (4,), role="norm"), frozen)
    run = RunLog.from_arrays(
        np.arange(1, 401), tensors=tensors, group_values={"lr": np.full(400, 1e-2), "weight_decay": np.full(400, 0.05)}
    )
    finding = only("SK420", run)
    assert (finding.first_step, finding.tensors) == (200, ("gain",))  # 200 * 1e-2 * 0.05 = 0.1


# SK421


def phases(logdir: Path, first: Any, second: Any, steps: int = 20, **options: Any) -> RunLog:
    """Two attempts in one directory; each phase is given the model and what was saved, and returns its optimizer."""
    saved: Any = None
    for number, phase in enumerate((first, second)):
        torch.manual_seed(number)
        model = Model()
        optimizer = phase(model, saved)
        train(model, optimizer, logdir, steps, **options)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    return stabkit.load(logdir)


def fresh(model: nn.Module, saved: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def weights_only(model: nn.Module, saved: Any) -> torch.optim.Optimizer:
    model.load_state_dict(saved[0])
    return fresh(model, saved)


def test_a_run_begun_anew_from_another_seed_has_lost_nothing(tmp_path: Path) -> None:
    assert status("SK421", phases(tmp_path, fresh, fresh)) is Status.CLEAR


def test_a_resume_with_the_optimizers_state_goes_on_in_the_same_attempt(tmp_path: Path) -> None:
    def everything(model: nn.Module, saved: Any) -> torch.optim.Optimizer:
        optimizer = weights_only(model, saved)
        optimizer.load_state_dict(saved[1])
        return optimizer

    run = phases(tmp_path, fresh, everything)
    assert run.attempts == 1 and status("SK421", run) is Status.NOT_APPLICABLE


def test_an_optimizer_made_anew_for_a_second_phase_resumes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    with stabkit.watch(model, logdir=tmp_path, tensorboard=False):
        for _ in range(2):
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in range(20):
                optimizer.zero_grad()
                model(torch.randn(4, 8)).square().mean().backward()
                optimizer.step()
    run = stabkit.load(tmp_path)
    assert run.attempts == 2 and status("SK421", run) is Status.NOT_APPLICABLE


def test_an_attempt_of_a_few_steps_had_no_moments_worth_keeping(tmp_path: Path) -> None:
    assert status("SK421", phases(tmp_path, fresh, weights_only, steps=5)) is Status.CLEAR


def test_another_phase_is_no_resume(tmp_path: Path) -> None:
    def head_only(model: Any, saved: Any) -> torch.optim.Optimizer:
        model.load_state_dict(saved[0])
        return torch.optim.AdamW(model.outer.parameters())

    def other_betas(model: Any, saved: Any) -> torch.optim.Optimizer:
        model.load_state_dict(saved[0])
        return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))

    for name, second in (("head", head_only), ("betas", other_betas)):
        outcome = judge(RULES["SK421"], phases(tmp_path / name, fresh, second))
        assert outcome.status is Status.NOT_APPLICABLE and "another phase" in outcome.reason


def test_a_checkpoint_from_the_middle_is_recognised(tmp_path: Path) -> None:
    """The process was killed at step 20; the last checkpoint is that of step 12."""
    kept: list[Any] = []

    def saving(model: nn.Module, saved: Any) -> torch.optim.Optimizer:
        optimizer = fresh(model, saved)

        def keep(stepped: Any, args: Any, kwargs: Any) -> None:
            if stepped.state[model.outer.weight]["step"] == 12:
                kept.append(copy.deepcopy(model.state_dict()))

        optimizer.register_step_post_hook(keep)
        return optimizer

    def middle(model: nn.Module, saved: Any) -> torch.optim.Optimizer:
        model.load_state_dict(kept[0])
        return fresh(model, saved)

    finding = only("SK421", phases(tmp_path, saving, middle))
    assert "of step 12 of the attempt before" in finding.message
    assert finding.state is State.RECOVERED and "about 2000 steps" in finding.advice


def test_lost_moments_explain_a_start_without_warmup(tmp_path: Path) -> None:
    def fast(model: nn.Module, saved: Any) -> torch.optim.Optimizer:
        if saved:
            model.load_state_dict(saved[0])
        return torch.optim.AdamW(model.parameters(), lr=0.1)

    (top,) = [f for f in analyze(phases(tmp_path, fast, fast)).findings if f.severity >= Severity.WARNING]
    assert top.rule == "SK421" and "SK101" in {f.rule for f in top.consequences}


def test_where_not_every_step_was_measured_no_match_is_no_proof(tmp_path: Path) -> None:
    outcome = judge(RULES["SK421"], phases(tmp_path, fresh, fresh, every=3))
    assert outcome.status is Status.NOT_APPLICABLE and "not every step" in outcome.reason


# SK105


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.95, 0.999), (0.9, 0.9)])
@pytest.mark.parametrize("corrects", [True, False])
def test_the_first_update_shows_whether_moments_are_corrected(
    betas: tuple[float, float], corrects: bool, tmp_path: Path
) -> None:
    model = model_of()
    optimizer = HandWrittenAdam(model.parameters(), lr=1e-4, betas=betas, corrects=corrects)
    run = train(model, optimizer, tmp_path, steps=3, exact_updates=True)
    assert status("SK105", run) is (Status.CLEAR if corrects else Status.FOUND)
    if not corrects:
        evidence = only("SK105", run).evidence[0]
        assert evidence.observed == pytest.approx((1 - betas[0]) / (1 - betas[1]) ** 0.5, rel=0.01) == evidence.expected


def test_betas_with_which_both_are_nearly_the_same_are_not_judged(tmp_path: Path) -> None:
    model = model_of()
    run = train(model, HandWrittenAdam(model.parameters(), betas=(0.9, 0.99), corrects=False), tmp_path, exact_updates=True)
    outcome = judge(RULES["SK105"], run)
    assert outcome.status is Status.NOT_APPLICABLE and "betas" in outcome.reason


def test_it_needs_no_option(tmp_path: Path) -> None:
    model = model_of()
    run = train(model, HandWrittenAdam(model.parameters(), corrects=False), tmp_path)
    assert only("SK105", run).evidence[0].observed == pytest.approx(3.16, abs=0.01)


@pytest.mark.parametrize("make", [getattr(torch.optim, name) for name in ("AdamW", "Adam", "NAdam", "RAdam", "Adamax")])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_torchs_own_optimizers_are_not_blamed(make: Any, decay: float, tmp_path: Path) -> None:
    model = model_of()
    run = train(model, make(model.parameters(), lr=1e-3, weight_decay=decay), tmp_path, steps=3, exact_updates=True)
    assert not judge(RULES["SK105"], run).findings


def test_a_resumed_optimizer_has_its_first_step_behind_it(tmp_path: Path) -> None:
    model = model_of()
    optimizer = HandWrittenAdam(model.parameters(), corrects=False)
    train(model, optimizer, tmp_path / "first")
    run = train(model, optimizer, tmp_path / "second", exact_updates=True)
    assert status("SK105", run) is Status.NOT_APPLICABLE


# SK306


class Master(torch.optim.AdamW):
    """Holds copies in float32 of weights in bfloat16, as mixed-precision frameworks do."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.pairs = [(p, nn.Parameter(p.detach().float())) for p in model.parameters()]
        super().__init__([copied for _, copied in self.pairs], lr=lr)

    def step(self, closure: Any = None) -> Any:
        for p, copied in self.pairs:
            copied.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        super().step()
        with torch.no_grad():
            for p, copied in self.pairs:
                p.copy_(copied)


def test_an_optimizer_of_copies_forgets_no_parameter(tmp_path: Path) -> None:
    """Frameworks whose optimizers step float32 copies may leave the gradients of the model where they are."""

    class Leaving(Master):
        def step(self, closure: Any = None) -> Any:
            left = [p.grad for p, _ in self.pairs]
            super().step()
            for (p, _), grad in zip(self.pairs, left, strict=True):
                p.grad = grad

    model = model_of().to(torch.bfloat16)
    optimizer = Leaving(model, 1e-3)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(24):
            model(torch.randn(4, 8).bfloat16()).sum().backward()
            optimizer.step()
            model.zero_grad()
    outcome = judge(RULES["SK416"], stabkit.load(tmp_path))
    assert outcome.status is Status.NOT_APPLICABLE and "copies" in outcome.reason


def test_float32_copies_lose_nothing(tmp_path: Path) -> None:
    model = model_of().to(torch.bfloat16)
    assert status("SK306", train(model, Master(model, 1e-5), tmp_path, steps=24)) is Status.NOT_APPLICABLE


def test_float32_weights_under_autocast_lose_nothing(tmp_path: Path) -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False, exact_updates=True):
        for _ in range(24):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(16, 8)).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert status("SK306", stabkit.load(tmp_path)) is Status.NOT_APPLICABLE


def bits(unchanged: Any, lr: Any = 1e-4) -> RunLog:
    """A run in bfloat16 of which so many sampled elements of 100 kept their bits."""
    n = len(np.asarray(unchanged))
    columns = {"unchanged_count": np.asarray(unchanged, dtype=float)[:, None], "unchanged_sampled": np.full((n, 1), 100.0),
               "update_sumsq": np.full((n, 1), 1e-4**2), "weight_sumsq": np.full((n, 1), 1.0)}  # fmt: skip
    rates = np.broadcast_to(np.asarray(lr, dtype=float), n)
    tensors = (TensorInfo("w", (4, 4), dtype="bfloat16"),)
    return RunLog.from_arrays(np.arange(1, n + 1), tensors=tensors, columns=columns, group_values={"lr": rates})


def test_the_rate_at_which_half_survives_is_computed() -> None:
    finding = only("SK306", bits(np.full(30, 85)))
    assert (finding.first_step, finding.state) == (20, State.ONGOING)
    # updates of 1e-4 of the weights, and 2^-8.5 = 2.76e-3 needed: 27.6 times the rate
    assert "from a rate of 0.0028 on" in finding.advice
    assert finding.message.startswith("85% of the updates at rate 0.0001 are rounded away")


def test_what_is_lost_in_warmup_or_at_the_end_of_a_schedule_is_not_judged() -> None:
    warmup = np.where(np.arange(100) < 50, 95, 20)
    assert status("SK306", bits(warmup, np.minimum(1e-3, 2e-5 * np.arange(1, 101)))) is Status.CLEAR
    end = np.where(np.arange(100) < 60, 20, 95)
    assert status("SK306", bits(end, np.where(np.arange(100) < 60, 1e-3, 5e-5))) is Status.CLEAR
    assert only("SK306", bits(end, np.where(np.arange(100) < 60, 1e-3, 5e-4))).first_step == 63


def test_nine_updates_of_ten_that_are_lost_are_told_after_four_steps() -> None:
    finding = only("SK306", bits(np.full(30, 95)))
    assert (finding.first_step, finding.event_step) == (4, 1)
    rates = np.minimum(1e-3, 1e-4 * np.arange(1, 31))
    assert only("SK306", bits(np.full(30, 95), rates)).first_step == 13  # the rate stands still from step 10 on


def test_a_warmup_that_will_not_reach_far_enough_is_told_after_ten_steps() -> None:
    rates, lost = 1e-5 * np.arange(1, 101), 100 - 0.5 * np.arange(1, 101)  # at the tenth step 5 % change
    finding = only("SK306", replace(bits(lost, rates), facts={"total_steps": 300}))
    assert (finding.first_step, finding.event_step) == (10, 1)  # at step 30, a tenth of the run, 15 % would
    assert status("SK306", replace(bits(lost, rates).until(30), facts={"total_steps": 3000})) is Status.NOT_APPLICABLE
    assert status("SK306", bits(lost, rates).until(30)) is Status.NOT_APPLICABLE  # nobody said how long the run is to be


def test_a_rounding_that_ends_is_past() -> None:
    finding = only("SK306", bits(np.where(np.arange(100) < 60, 95, 20)))
    assert finding.state is State.RECOVERED and finding.last_step == 69  # the last with eleven such steps of 20
