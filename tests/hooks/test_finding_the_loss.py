"""The loss is found without being passed, in every form of backward, and steps after an exception are recorded rightly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import backward as imported_early
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

import stabkit


class Line(torch.nn.Module):
    """y = w x, so that losses are known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: float) -> torch.Tensor:
        return (self.w * x).sum()


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def optimizer(line: Line) -> torch.optim.AdamW:
    return torch.optim.AdamW(line.parameters(), lr=0.0)  # the weights stay 1: a loss of x is 2 x


def twice(loss: torch.Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


FORMS: dict[str, tuple[Callable[[Line], Any], float, int]] = {  # what is done, the loss of the step, backward calls
    "method": (lambda line: line(3.0).backward(), 6.0, 1),
    "function": (lambda line: torch.autograd.backward(line(3.0)), 6.0, 1),
    "imported early": (lambda line: imported_early(line(3.0)), 6.0, 1),
    "list of roots": (lambda line: torch.autograd.backward([line(3.0), line(1.0)]), 8.0, 1),
    "tuple of roots": (lambda line: torch.autograd.backward((line(3.0), 2 * line(1.0).square())), 14.0, 1),
    "retained and repeated": (lambda line: twice(line(3.0)), 6.0, 2),
    "inputs": (lambda line: line(3.0).backward(inputs=[line.w]), 6.0, 1),
    "one element": (lambda line: line(3.0).reshape(1).backward(), 6.0, 1),
    "retain_graph": (lambda line: line(3.0).backward(retain_graph=True), 6.0, 1),
    "create_graph": (lambda line: line(3.0).square().backward(create_graph=True), 36.0, 1),
    "not a scalar": (lambda line: (line.w * 3).backward(torch.ones(2)), math.nan, 1),
    "some not scalars": (lambda line: torch.autograd.backward([line(3.0), line.w * 3], [None, torch.ones(2)]), math.nan, 1),
    "bfloat16": (lambda line: line(3.0).bfloat16().backward(), 6.0, 1),
}


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_backward(watching: Any, read: Any, line: Line, optimizer: Any, form: str) -> None:
    act, loss, count = FORMS[form]
    with watching(line, optimizer):
        for _ in range(2):
            act(line)
            optimizer.step()
            optimizer.zero_grad()
    run = read()
    assert run.series("backward_count").values.tolist() == [count, count]
    if math.isnan(loss):
        assert not run.has("loss") or run.series("loss").values.tolist() == pytest.approx([loss, loss], nan_ok=True)
    else:
        assert run.series("loss").values.tolist() == [loss, loss]


def test_the_loss_overwritten_after_backward(watching: Any, read: Any, line: Line, optimizer: Any) -> None:
    with watching(line, optimizer):
        loss = line(3.0)
        loss.backward()
        loss.detach().mul_(0)
        optimizer.step()
    assert read().series("loss").values.tolist() == [6.0]


def test_reentrant_checkpoint_counts_once(watching: Any, read: Any, line: Line, optimizer: Any) -> None:
    hidden = torch.nn.Linear(1, 1)
    with watching(line, optimizer):
        for _ in range(2):
            x = torch.ones(1, requires_grad=True)
            y = checkpoint(lambda x: line(3.0) * x, x, use_reentrant=True)
            checkpoint(lambda y: y + 0 * hidden(y).sum(), y, use_reentrant=True).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = read()
    assert run.series("backward_count").values.tolist() == [1, 1]
    assert run.series("loss").values.tolist() == [6.0, 6.0]


def test_autograd_grad_is_no_backward(watching: Any, read: Any, line: Line, optimizer: Any) -> None:
    with watching(line, optimizer):
        torch.autograd.grad(line(100.0), line.w)
        line(3.0).backward()
        torch.autograd.grad(line(100.0), line.w)
        optimizer.step()
    run = read()
    assert run.series("loss").values.tolist() == [6.0]
    assert run.series("backward_count").values.tolist() == [1]


def test_backward_of_another_model_is_ignored(watching: Any, read: Any, line: Line, optimizer: Any) -> None:
    other = Line()
    with watching(line, optimizer):
        other(100.0).backward()
        line(3.0).backward()
        other(100.0).backward()
        optimizer.step()
    run = read()
    assert run.series("loss").values.tolist() == [6.0]
    assert run.series("grad_norm").values.tolist() == pytest.approx([math.sqrt(18)])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_dropped_without_a_step(watching: Any, read: Any, line: Line, optimizer: Any, set_to_none: bool) -> None:
    with watching(line, optimizer):
        for _ in range(2):
            line(100.0).backward()
            optimizer.zero_grad(set_to_none=set_to_none)
            line(3.0).backward()
            line(4.0).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    run = read()
    assert run.series("loss_sum").values.tolist() == [14.0, 14.0]
    assert run.series("backward_count").values.tolist() == [2, 2]
    assert run.series("grad_norm").values.tolist() == pytest.approx([math.sqrt(98)] * 2)


def test_several_optimizers(watching: Any, read: Any) -> None:
    """As in a GAN: one loss reaches both, the other one only."""
    models = {"a": Line(), "b": Line()}
    first, second = (torch.optim.AdamW(m.parameters(), lr=0.0) for m in models.values())
    with watching(models, [first, second]):
        for _ in range(2):
            models["a"](3.0).backward()
            first.step()
            first.zero_grad(), second.zero_grad()
            (models["a"](1.0) + models["b"](4.0)).backward()
            second.step()
            first.zero_grad(), second.zero_grad()
    run = read()
    assert run.series("loss").values.tolist() == [6.0, 6.0]
    assert run.optimizer(1).series("loss").values.tolist() == [10.0, 10.0]
    assert run.optimizer(1).tensors[0].name == "b.w"


@pytest.mark.parametrize("divided", ["/ 4", "* .25", ".25 *", "tensor", "scaled"])
def test_a_division_is_recognised(watching: Any, read: Any, line: Line, optimizer: Any, divided: str) -> None:
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "/ 4": lambda loss: loss / 4, "* .25": lambda loss: loss * 0.25, ".25 *": lambda loss: 0.25 * loss,
        "tensor": lambda loss: loss / torch.tensor(4.0), "scaled": lambda loss: (loss / 4).mean(),
    }  # fmt: skip
    with watching(line, optimizer):
        for x in range(4):
            ways[divided](line(float(x)).square()).backward()
        optimizer.step()
    assert read().series("loss").values.tolist() == [(0 + 4 + 16 + 36) / 4]


def test_a_mean_inside_the_loss_is_no_division(watching: Any, read: Any, line: Line, optimizer: Any) -> None:
    with watching(line, optimizer):
        for x in (1.0, 3.0):
            torch.sqrt((line(x) + line(x)) / 2).square().backward()
        optimizer.step()
    assert read().series("loss").values.tolist() == pytest.approx([4.0])


@pytest.mark.parametrize("per", ["tokens of the step", "tokens of the micro-batch"])
def test_sums_over_tokens_add_up_only_where_divided_by_the_tokens_of_the_step(
    watching: Any, read: Any, line: Line, optimizer: Any, per: str
) -> None:
    """Transformers divides the sum of a micro-batch's losses by the tokens of the whole step; others take the mean by hand."""
    losses = []
    with watching(line, optimizer):
        for count in (2, 6):
            logits = line.w.new_ones(count, 1) * line.w * torch.tensor([1.0, 3.0])
            targets = torch.tensor([0] * count + [-100])  # one that is ignored
            logits = torch.cat([logits, logits[:1]])
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            loss = loss / (8 if per == "tokens of the step" else count)
            loss.backward()
            losses.append(float(loss))
        optimizer.step()
    expected = sum(losses) if per == "tokens of the step" else sum(losses) / 2
    assert read().series("loss").values.tolist() == pytest.approx([expected], rel=1e-6)


# ---- exceptions --------------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


class Explosive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise Broken


def ordinary_steps(line: Line, optimizer: Any, count: int = 2, set_to_none: bool = True) -> None:
    for _ in range(count):
        line(3.0).backward()
        clip_grad_norm_(line.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def assert_ordinary(run: Any, last: int = 2) -> None:
    """The last steps are as if nothing had happened."""
    norm = math.sqrt(18)
    expected = {
        "loss": 6.0, "loss_sum": 6.0, "backward_count": 1.0, "grad_norm": norm, "grad_norm_used": 1.0, "clip_max_norm": 1.0,
        "clip_coefficient": 1 / norm, "weight_norm": math.sqrt(2),
    }  # fmt: skip
    for name, value in expected.items():
        assert run.series(name).values[-last:].tolist() == pytest.approx([value] * last, rel=1e-5), name
    assert run.table("grad_norm").values[-last:, 0].tolist() == pytest.approx([norm] * last)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_exception_inside_backward(watching: Any, read: Any, line: Line, optimizer: Any, set_to_none: bool) -> None:
    with watching(line, optimizer):
        ordinary_steps(line, optimizer, 1, set_to_none)
        for good_before in (False, True):
            if good_before:
                line(7.0).backward()
            with pytest.raises(Broken):
                (line(3.0) + Explosive.apply(line.w).sum()).backward()
            optimizer.zero_grad(set_to_none=set_to_none)
            ordinary_steps(line, optimizer, 2, set_to_none)
    run = read()
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    assert_ordinary(run, 5)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_exception_inside_clip(watching: Any, read: Any, line: Line, optimizer: Any, set_to_none: bool) -> None:
    with watching(line, optimizer):
        ordinary_steps(line, optimizer, 1, set_to_none)
        line(math.inf).backward()
        with pytest.raises(RuntimeError, match="non-finite"):
            clip_grad_norm_(line.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.zero_grad(set_to_none=set_to_none)
        ordinary_steps(line, optimizer, 2, set_to_none)
    assert_ordinary(read(), 3)


def test_wrong_arguments_to_clip(watching: Any, read: Any, line: Line, optimizer: Any) -> None:
    def said_of_no_parameters() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clip_grad_norm_((p for p in ()), 1.0)
        return [str(warning.message) for warning in caught]

    bare = said_of_no_parameters()  # torch warns of an empty generator from 2.6 on
    with watching(line, optimizer):
        with pytest.raises(TypeError, match="max_norm"):
            clip_grad_norm_(line.parameters())  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            clip_grad_norm_(7, 1.0)  # type: ignore[arg-type]
        assert said_of_no_parameters() == bare
        ordinary_steps(line, optimizer)
    assert_ordinary(read())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_exception_inside_step(watching: Any, read: Any, line: Line, when: str, set_to_none: bool) -> None:
    class Failing(torch.optim.AdamW):
        """Fails once, before or after the weights were changed."""

        fails = False

        def step(self, closure: Any = None) -> Any:
            if self.fails and when == "before":
                raise Broken
            super().step(closure)
            if self.fails:
                raise Broken

    optimizer = Failing(line.parameters(), lr=0.0)
    with watching(line, optimizer):
        ordinary_steps(line, optimizer, 1, set_to_none)
        for _ in range(2):
            optimizer.fails = True
            line(100.0).backward()
            with pytest.raises(Broken):
                optimizer.step()
            optimizer.fails = False
            optimizer.zero_grad(set_to_none=set_to_none)
            ordinary_steps(line, optimizer, 2, set_to_none)
    run = read()
    assert run.steps.tolist() == [1, 3, 4, 6, 7]  # a step that raised was attempted, and has no record
    assert run.attempts == 1
    assert run.series("applied_steps").values.tolist() == ([1, 2, 3, 4, 5] if when == "before" else [1, 3, 4, 6, 7])
    assert_ordinary(run, 5)


def test_a_step_that_calls_the_one_it_inherits_is_one_step(watching: Any, read: Any, line: Line) -> None:
    class Child(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Grandchild(Child):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    optimizer = Grandchild(line.parameters(), lr=0.0)
    with watching(line, optimizer):
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        ordinary_steps(line, optimizer, 3)
        scheduler.step()
    run = read()
    assert run.steps.tolist() == [1, 2, 3]
    assert_ordinary(run, 3)


@pytest.mark.parametrize("by_name", [True, False])
def test_closure(watching: Any, read: Any, line: Line, by_name: bool) -> None:
    optimizer = torch.optim.AdamW(line.parameters(), lr=0.01, weight_decay=0.0)
    momenta = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = line(3.0) + line.w.square().sum()
        loss.backward()
        losses.append(float(loss))
        gradient = line.w.grad.double().clone()
        m = optimizer.state[line.w].get("exp_avg") if optimizer.state else None
        momenta.append(math.nan if m is None else float(torch.cosine_similarity(m.double(), gradient, dim=0)))
        norms.append(float(gradient.norm()))
        clip_grad_norm_(line.parameters(), 1.0)
        return loss

    losses: list[float] = []
    norms: list[float] = []
    with watching(line, optimizer):
        for _ in range(4):
            returned = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            assert float(returned) == losses[-1]
    run = read()
    assert run.series("loss").values.tolist() == losses
    assert run.series("grad_norm").values.tolist() == pytest.approx(norms)
    assert run.series("grad_norm_used").values.tolist() == pytest.approx([1.0] * 4, rel=1e-5)
    cosine = run.table("grad_momentum_cosine").series("w").values[1:]
    assert cosine[1:].tolist() == pytest.approx(momenta[1:], abs=1e-4)
    assert math.isnan(cosine[0])


def test_lbfgs_evaluates_its_closure_often(watching: Any, read: Any, line: Line) -> None:
    optimizer = torch.optim.LBFGS(line.parameters(), max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (line.w - 3).square().sum()
        loss.backward()
        return loss

    with watching(line, optimizer):
        for _ in range(3):
            optimizer.step(closure)
    assert read().steps.tolist() == [1, 2, 3]


def test_keyboard_interrupt_reaches_the_user(watching: Any, line: Line, optimizer: Any, monkeypatch: Any) -> None:
    from stabkit.hooks.recorder import StepRecorder

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StepRecorder, "step_end", interrupted)
    with pytest.raises(KeyboardInterrupt), watching(line, optimizer):
        line(3.0).backward()
        optimizer.step()
    assert stabkit.load is not None
