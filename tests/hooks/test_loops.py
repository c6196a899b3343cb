"""Shapes of loops that are no idiom to copy, and happen all the same: each keeps its own truth and is recorded truly."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import stabkit


def make(lr: float = 0.01) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


def step(model: Any, optimizer: Any, clip: float | None = None) -> tuple[float, float]:
    """An ordinary step; its loss and the norm of its gradient."""
    optimizer.zero_grad()
    loss = model(torch.randn(3, 4)).square().mean()
    loss.backward()
    norm = float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
    if clip:
        clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return float(loss), norm


def assert_steps(run: Any, truth: list[tuple[float, float]], first: int = 1) -> None:
    assert run.steps.tolist() == list(range(first, first + len(truth)))
    assert run.series("loss").values.tolist() == pytest.approx([loss for loss, _ in truth], rel=1e-6)
    assert run.series("grad_norm").values.tolist() == pytest.approx([norm for _, norm in truth], rel=1e-5)
    assert run.series("backward_count").values.tolist() == [1] * len(truth)


# ---- an optimizer made anew ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_an_optimizer_made_anew_in_the_middle_begins_a_new_attempt(watching: Any, read: Any, adopt: bool) -> None:
    model, optimizer = make()
    with watching(model, None if adopt else optimizer):
        before = [step(model, optimizer) for _ in range(4)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
        after = [step(model, optimizer, 0.05) for _ in range(3)]
    run = read()
    assert run.attempts == 2
    assert_steps(run, after)
    assert run.series("lr").values.tolist() == [0.002] * 3
    assert run.series("applied_steps").values.tolist() == [1, 2, 3]
    assert_steps(read(attempt=0), before)


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_an_optimizer_made_anew_with_the_old_state_goes_on(watching: Any, read: Any, adopt: bool) -> None:
    model, optimizer = make()
    with watching(model, None if adopt else optimizer):
        truth = [step(model, optimizer) for _ in range(4)]
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.load_state_dict(state)
        truth += [step(model, optimizer) for _ in range(3)]
    run = read()
    assert run.attempts == 1
    assert_steps(run, truth)


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_an_optimizer_of_another_class_takes_over(watching: Any, read: Any, adopt: bool) -> None:
    model, optimizer = make()
    with watching(model, None if adopt else optimizer):
        [step(model, optimizer) for _ in range(2)]
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        after = [step(model, sgd) for _ in range(3)]
    assert_steps(read(), after)
    assert [e["by"] for e in read(attempt=0).events if e["event"] == "replaced"] == ["SGD"]


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_a_head_first_then_everything(watching: Any, read: Any, adopt: bool) -> None:
    model, _ = make()
    model[0].requires_grad_(False)
    head = torch.optim.AdamW(model[2].parameters())
    with watching(model, None if adopt else head):
        [step(model, head) for _ in range(2)]
        model[0].requires_grad_(True)
        everything = torch.optim.AdamW(model.parameters())
        after = [step(model, everything) for _ in range(3)]
    run = read()
    assert [t.name for t in run.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.series("loss").values.tolist() == pytest.approx([loss for loss, _ in after], rel=1e-6)
    assert run.series("grad_norm_used").values.tolist() == pytest.approx([norm for _, norm in after], rel=1e-5)


def test_the_replaced_optimizer_is_let_go(logdir: Any) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, logdir, tensorboard=False):
        step(model, optimizer)
        old = weakref.ref(optimizer)
        optimizer = torch.optim.AdamW(model.parameters())
        step(model, optimizer)
        gc.collect()
        assert old() is None


def test_two_optimizers_of_the_same_parameters_in_turn_are_two_streams(watching: Any, read: Any) -> None:
    model, one = make()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    truth: list[list[tuple[float, float]]] = [[], []]
    with watching(model, [one, other]):
        for i in range(8):
            truth[i % 2].append(step(model, (one, other)[i % 2]))
    run = read()
    for i in range(2):
        assert_steps(run.optimizer(i), truth[i])


def test_two_adopted_optimizers_of_the_same_parameters_in_turn_are_never_mixed(watching: Any, read: Any) -> None:
    """The second looks like one made anew until the first steps again: from then on each has a stream."""
    model, one = make()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    truth: list[list[tuple[float, float]]] = [[], []]
    with watching(model):
        for i in range(8):
            truth[i % 2].append(step(model, (one, other)[i % 2]))
    run = read()
    assert run.optimizer(0).series("loss").values.tolist() == pytest.approx([loss for loss, _ in truth[1]], rel=1e-6)
    assert run.optimizer(1).series("loss").values.tolist() == pytest.approx([loss for loss, _ in truth[0][1:]], rel=1e-6)


def test_a_lookahead_around_an_adopted_optimizer(watching: Any, read: Any) -> None:
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure: Any = None) -> None:
            self.inner.step()

    model, optimizer = make()
    with watching(model):
        outer = Lookahead(optimizer)
        truth = [step(model, outer) for _ in range(3)]
    run = read()
    assert len(run.streams) == 1
    assert run.stream.optimizer == "AdamW"
    assert_steps(run, truth)


# ---- interrupted ---------------------------------------------------------------------------------------------------------


class Interrupting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_keyboard_interrupt_inside_backward(watching: Any, read: Any, adopt: bool) -> None:
    """Caught by the user, as in a notebook; the run goes on as if nothing had been."""
    model, optimizer = make()
    with watching(model, None if adopt else optimizer):
        truth = [step(model, optimizer) for _ in range(2)]
        with pytest.raises(KeyboardInterrupt):
            Interrupting.apply(model(torch.randn(3, 4))).square().mean().backward()
        optimizer.zero_grad()
        truth += [step(model, optimizer) for _ in range(2)]
    assert_steps(read(), truth)


@pytest.mark.parametrize("late", [False, True], ids=["before the weights change", "after"])
@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_keyboard_interrupt_inside_step(watching: Any, read: Any, adopt: bool, late: bool) -> None:
    class Interrupted(torch.optim.AdamW):
        now = False

        def step(self, closure: Any = None) -> None:
            if self.now and not late:
                raise KeyboardInterrupt
            super().step(closure)
            if self.now:
                raise KeyboardInterrupt

    model, _ = make()
    optimizer = Interrupted(model.parameters(), lr=0.01)
    with watching(model, None if adopt else optimizer):
        truth = [step(model, optimizer) for _ in range(2)]
        optimizer.now = True
        with pytest.raises(KeyboardInterrupt):
            step(model, optimizer)
        optimizer.now = False
        truth += [step(model, optimizer) for _ in range(2)]
    run = read()
    assert run.steps.tolist() == [1, 2, 4, 5]
    assert run.series("loss").values.tolist() == pytest.approx([loss for loss, _ in truth], rel=1e-6)


def test_a_keyboard_interrupt_that_ends_the_run_leaves_a_whole_log(watching: Any, read: Any) -> None:
    model, optimizer = make()
    truth = []
    with pytest.raises(KeyboardInterrupt), watching(model, optimizer):
        for i in range(5):
            truth.append(step(model, optimizer))
            if i == 3:
                Interrupting.apply(model(torch.randn(3, 4))).sum().backward()
    run = read()
    assert_steps(run, truth)
    assert run.notes == ()


# ---- steps that are none, and gradients that are none --------------------------------------------------------------------


def test_a_step_without_any_gradient(watching: Any, read: Any) -> None:
    model, optimizer = make()
    weights = [p.detach().clone() for p in model.parameters()]
    with watching(model, optimizer):
        optimizer.step()
        truth = step(model, optimizer)
        assert not all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    run = read()
    assert run.series("backward_count").values.tolist() == [0, 1]
    assert math.isnan(run.series("loss").values[0])
    assert run.series("loss").values[1] == pytest.approx(truth[0])


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_gradients_set_to_none_for_one_layer(watching: Any, read: Any, adopt: bool) -> None:
    model, optimizer = make()
    used = []
    with watching(model, None if adopt else optimizer):
        for i in range(4):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).square().mean().backward()
            if i % 2:
                model[0].weight.grad = None
            used.append([math.nan if p.grad is None else float(p.grad.norm()) for p in model.parameters()])
            optimizer.step()
    table = read().table("grad_norm_used")
    assert table.values[1:].tolist() == [pytest.approx(row, rel=1e-5, nan_ok=True) for row in used]


def test_an_optimizer_for_each_parameter_stepped_inside_backward(watching: Any, read: Any) -> None:
    """PyTorch's tutorial on saving memory: each step is made by a hook as soon as its gradient is there."""
    model, _ = make()
    optimizers = {p: torch.optim.AdamW([p], lr=0.01, foreach=False) for p in model.parameters()}
    norms: dict[Any, list[float]] = {p: [] for p in optimizers}

    def hook(p: torch.Tensor) -> None:
        norms[p].append(float(p.grad.norm()))
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(hook)
    with watching(model):
        for _ in range(4):
            model(torch.randn(3, 4)).square().mean().backward()
    run = read()
    recorded = {view.tensors[0].name: view for view in (run.optimizer(i) for i in range(len(run.streams)))}
    for name, p in model.named_parameters():
        assert recorded[name].steps.tolist() == [1, 2, 3, 4]
        assert recorded[name].series("grad_norm_used").values.tolist() == pytest.approx(norms[p], rel=1e-5)


# ---- several watches, workers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
def test_nested_watches_of_one_model_the_inner_shorter(tmp_path: Any, adopt: bool) -> None:
    model, optimizer = make()
    given = None if adopt else optimizer
    with stabkit.watch(model, given, tmp_path / "outer", tensorboard=False):
        truth = [step(model, optimizer, 0.1) for _ in range(2)]
        with stabkit.watch(model, given, tmp_path / "inner", tensorboard=False):
            truth += [step(model, optimizer, 0.1) for _ in range(3)]
        truth += [step(model, optimizer, 0.1)]
    assert_steps(stabkit.load(tmp_path / "outer"), truth)
    assert_steps(stabkit.load(tmp_path / "inner"), truth[2:5], first=3)


def test_dataloader_workers_that_are_spawned(watching: Any, read: Any) -> None:
    """They import the training again and find no watch in it; the loss of each batch is ours alone."""
    model, optimizer = make()
    data = torch.utils.data.TensorDataset(torch.randn(12, 4))
    truth = []
    with watching(model, optimizer):
        loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context="spawn")
        for (batch,) in loader:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            truth.append(float(loss))
    run = read()
    assert run.series("loss").values.tolist() == pytest.approx(truth, rel=1e-6)
    assert run.notes == ()


def test_a_model_with_lazy_layers(watching: Any, read: Any) -> None:
    """Their weights get a shape at the first forward, and an optimizer after it."""
    model = torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.Tanh(), torch.nn.LazyLinear(2))
    with watching(model):
        model(torch.randn(3, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        truth = [step(model, optimizer) for _ in range(3)]
    assert_steps(read(), truth)
