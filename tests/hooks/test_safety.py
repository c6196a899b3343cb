"""Whatever happens inside stabkit, the training goes on; and torch is afterwards as it was before."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad
from torch.optim import optimizer as torch_optimizer

import stabkit
from stabkit.hooks.recorder import StepRecorder
from stabkit.runlog import RunWriter
from stabkit.watch import StabkitWarning


def make(width: int = 4) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    model = torch.nn.Linear(width, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model: torch.nn.Module, optimizer: Any, steps: int = 1) -> None:
    for _ in range(steps):
        model(torch.ones(3, 4)).square().sum().backward()
        clip_grad.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def events(logdir: Path, kind: str) -> list[Any]:
    return [event for event in stabkit.load(logdir).events if event["event"] == kind]


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    return failing


@contextlib.contextmanager
def warnings_counted(expected: int) -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    assert len([w for w in caught if w.category is StabkitWarning]) == expected, [str(w.message) for w in caught]


def the_same_weights(act: Callable[[torch.nn.Module, Any], Any], reference: Callable[[torch.nn.Module, Any], Any]) -> None:
    weights = []
    for run in (act, reference):
        torch.manual_seed(0)
        model, optimizer = make()
        run(model, optimizer)
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)


# ---- failures of our own -------------------------------------------------------------------------------------------------


def test_a_recorder_that_always_raises(watching: Any, logdir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(StepRecorder, "step_end", fail(ValueError("secret reason")))

    def watched(model: Any, optimizer: Any) -> None:
        with warnings_counted(1) as caught, watching(model, optimizer):
            train(model, optimizer, 6)
        assert "secret reason" in str(caught[0].message)

    the_same_weights(watched, lambda model, optimizer: train(model, optimizer, 6))
    faults = events(logdir, "fault")
    assert [fault["stopped"] for fault in faults] == [False, False, True]
    assert faults[0]["where"] == "step_end"
    assert "secret reason" in faults[0]["error"]


@pytest.mark.parametrize("method", ["backward_begin", "backward_end", "clip_begin", "clip_end", "step_begin", "step_end"])
def test_a_recorder_that_raises_once(watching: Any, logdir: Path, monkeypatch: Any, method: str) -> None:
    """The step it happened in is left out; those after it are right."""
    original = getattr(StepRecorder, method)
    calls = [0]

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] in (2, 4, 6):
            raise ValueError("now and then")
        return original(*args, **kwargs)

    monkeypatch.setattr(StepRecorder, method, sometimes)
    model, optimizer = make()
    with warnings_counted(1), watching(model, optimizer):
        train(model, optimizer, 8)
    run = stabkit.load(logdir)
    assert run.steps.tolist() == [1, 3, 5, 7, 8]  # three failures, but never in a row
    assert run.series("backward_count").values.tolist() == [1] * 5
    assert np.isfinite(run.series("grad_norm").values).all()
    assert np.isfinite(run.series("clip_coefficient").values).all()
    assert len(events(logdir, "fault")) == 3


def test_a_disk_that_refuses(watching: Any, logdir: Path, monkeypatch: Any) -> None:
    """It may have room again later: recording does not stop, but the complaints do."""
    monkeypatch.setattr(RunWriter, "write", fail(OSError(28, "no space left on device")))

    def watched(model: Any, optimizer: Any) -> None:
        with warnings_counted(1), watching(model, optimizer):
            train(model, optimizer, 6)

    the_same_weights(watched, lambda model, optimizer: train(model, optimizer, 6))
    assert [e["stopped"] for e in events(logdir, "fault")] == [False] * 3


@pytest.mark.parametrize("method", ["event", "layout", "begin_attempt", "close"])
@pytest.mark.parametrize("error", [OSError(28, "no space left on device"), ValueError("a bug")], ids=["disk", "bug"])
def test_a_writer_that_fails(watching: Any, monkeypatch: Any, method: str, error: Exception) -> None:
    model, optimizer = make()
    with warnings.catch_warnings(record=True) as caught, watching(model, optimizer):
        monkeypatch.setattr(RunWriter, method, fail(error))
        train(model, optimizer, 6)
    monkeypatch.undo()
    assert len([w for w in caught if w.category is StabkitWarning]) <= 1


@pytest.mark.parametrize("broken", ["named_parameters", "attach"])
def test_a_monitor_that_cannot_even_begin(watching: Any, monkeypatch: Any, broken: str) -> None:
    from stabkit.hooks import monitor, watchlist

    target = monitor.Monitor if broken == "attach" else watchlist
    monkeypatch.setattr(target, broken, fail(ValueError("a bug")))
    model, optimizer = make()
    with warnings_counted(1), watching(model, optimizer) as watch:
        train(model, optimizer, 3)
        watch.log(val=1.0), watch.mark("x"), watch.flush()


def test_warnings_made_errors_do_not_reach_the_training(watching: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(StepRecorder, "step_end", fail(ValueError("x")))
    model, optimizer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watching(model, optimizer):
            train(model, optimizer, 5)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model, optimizer = make()
    with warnings_counted(1), stabkit.watch(model, optimizer, tmp_path / "file" / "run", tensorboard=False) as watch:
        train(model, optimizer, 2)
        watch.log(val=1.0)
    assert watch.logdir is None


def test_an_optimizer_of_another_model(watching: Any, read: Any) -> None:
    model, _ = make()
    other, optimizer = make()
    with warnings_counted(1), watching(model, optimizer):
        train(other, optimizer, 2)
    assert [t.name for t in read().tensors] == ["optimizer0.group0.0", "optimizer0.group0.1"]


# ---- the patches ---------------------------------------------------------------------------------------------------------


CLIPPING = ("clip_grad_norm_", "clip_grad_value_", "_clip_grads_with_norm_")  # of the last, torch has one from 2.6 on


def patched_places() -> list[Any]:
    def cell(function: Any) -> Any:
        return function.__closure__[function.__code__.co_freevars.index("func")].cell_contents

    return [
        torch.autograd._engine_run_backward,
        torch.autocast.__enter__,
        *(cell(getattr(clip_grad, n)) for n in CLIPPING if hasattr(clip_grad, n)),
        dict(torch_optimizer._global_optimizer_pre_hooks),
        dict(torch_optimizer._global_optimizer_post_hooks),
    ]


@pytest.fixture(autouse=True)
def torch_is_restored() -> Iterator[None]:
    before = patched_places()
    yield
    assert patched_places() == before


@pytest.mark.parametrize("error", [None, ValueError("the user's"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_patches_are_undone(watching: Any, error: BaseException | None) -> None:
    before = patched_places()
    model, optimizer = make()
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), watching(model, optimizer):
        assert patched_places() != before
        train(model, optimizer)
        if error:
            raise error
    assert patched_places() == before


@pytest.mark.parametrize("order", ["nested", "out of order"])
def test_several_watches(tmp_path: Path, order: str) -> None:
    before = patched_places()
    pairs = [make(), make()]
    watches = [stabkit.watch(m, o, tmp_path / str(i), tensorboard=False) for i, (m, o) in enumerate(pairs)]
    for watch in watches:
        watch.__enter__()
    for model, optimizer in pairs:
        train(model, optimizer, 2)
    first, last = watches if order == "out of order" else reversed(watches)
    first.__exit__(None, None, None)
    for model, optimizer in pairs:
        train(model, optimizer)
    last.__exit__(None, None, None)
    assert patched_places() == before
    counts = sorted(len(stabkit.load(tmp_path / str(i)).steps) for i in range(2))
    assert counts == [2, 3]
    for i in range(2):
        assert set(stabkit.load(tmp_path / str(i)).series("backward_count").values) == {1}


def test_two_watches_of_one_model(tmp_path: Path) -> None:
    model, optimizer = make()
    outer, inner = (stabkit.watch(model, optimizer, tmp_path / name, tensorboard=False) for name in "ab")
    with outer, inner:
        train(model, optimizer, 3)
    a, b = (stabkit.load(tmp_path / name) for name in "ab")
    assert a.series("loss").values.tolist() == b.series("loss").values.tolist()
    assert np.array_equal(a.table("update_norm").values, b.table("update_norm").values, equal_nan=True)


def test_a_patch_of_another_tool_on_top_stays_and_nothing_is_counted_twice(watching: Any, read: Any) -> None:
    model, optimizer = make()
    original = torch.autograd._engine_run_backward
    watching_first = watching(model, optimizer)
    with watching_first:
        ours = torch.autograd._engine_run_backward

        def theirs(*args: Any, **kwargs: Any) -> Any:
            return ours(*args, **kwargs)

        torch.autograd._engine_run_backward = theirs
        train(model, optimizer)
    try:
        assert torch.autograd._engine_run_backward is theirs
        train(model, optimizer)  # through a pass-through of ours
        with watching(model, optimizer):
            train(model, optimizer, 2)
        assert torch.autograd._engine_run_backward is theirs
    finally:
        torch.autograd._engine_run_backward = original
    run = read()
    assert run.series("backward_count").values.tolist() == [1, 1, 1]
    assert run.steps.tolist() == [1, 3, 4]


# ---- the user's objects --------------------------------------------------------------------------------------------------


def test_copies_and_checkpoints_carry_nothing(watching: Any) -> None:
    model, optimizer = make()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with watching(model, optimizer):
        train(model, optimizer, 2)
        for thing in (model, optimizer, scheduler):
            assert b"stabkit" not in pickle.dumps(thing)
            pickle.loads(pickle.dumps(thing))
            copied = copy.deepcopy(thing)
            assert set(vars(copied)) <= set(vars(thing))
            file = io.BytesIO()
            torch.save(thing, file)
            assert b"stabkit" not in file.getvalue()
        for state in (model.state_dict(), optimizer.state_dict(), scheduler.state_dict()):
            assert b"stabkit" not in pickle.dumps(state)
        copied_model, copied_optimizer = copy.deepcopy((model, optimizer))
        train(copied_model, copied_optimizer)
        assert not optimizer._optimizer_step_pre_hooks
        assert not model._forward_hooks


@pytest.mark.parametrize("keep", [False, True], ids=["all dropped", "watch kept"])
def test_nothing_leaks(logdir: Path, keep: bool) -> None:
    def session() -> tuple[list[Any], Any]:
        model, optimizer = make()
        with stabkit.watch(model, optimizer, logdir, tensorboard=False) as watch:
            train(model, optimizer, 2)
            monitor = watch._monitor
        model(torch.ones(1, 4)).sum().backward()
        seen = [weakref.ref(x) for x in (model, optimizer, model.weight)]
        return [*seen, *([] if keep else [weakref.ref(monitor)])], watch if keep else None

    seen, watch = session()
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)
    if watch:
        watch.log(val=1.0)


def test_dataloader_with_workers(watching: Any, read: Any) -> None:
    model, optimizer = make()
    data = torch.utils.data.TensorDataset(torch.ones(12, 4))
    with watching(model, optimizer):
        loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context="fork")
        for _ in range(2):
            for (batch,) in loader:
                model(batch).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    run = read()
    assert run.steps.tolist() == list(range(1, 9))
    assert run.notes == ()


def train_in_a_child(model: Any, optimizer: Any) -> None:
    train(model, optimizer, 3)


def test_a_forked_child_that_trains_records_nothing(watching: Any, read: Any) -> None:
    model, optimizer = make()
    with watching(model, optimizer):
        train(model, optimizer)
        child = torch.multiprocessing.get_context("fork").Process(target=train_in_a_child, args=(model, optimizer))
        child.start()
        child.join()
        assert child.exitcode == 0
        train(model, optimizer)
    assert read().steps.tolist() == [1, 2]


def test_a_scheduler_made_inside(watching: Any, read: Any) -> None:
    model, optimizer = make()
    with warnings_counted(0), watching(model, optimizer):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            train(model, optimizer)
            scheduler.step()
    assert read().series("lr").values.tolist() == [0.01, 0.005, 0.0025]


def test_adopts_the_optimizer_that_steps(watching: Any, read: Any) -> None:
    model, optimizer = make()
    other, foreign = make()
    with watching(model):
        train(other, foreign)
        train(model, optimizer, 3)
    run = read()
    assert run.steps.tolist() == [1, 2, 3]
    assert len(run.streams) == 1
    assert np.isfinite(run.series("loss").values).all()
    assert np.isfinite(run.series("grad_norm").values).all()
    assert np.isfinite(run.series("clip_coefficient").values).all()


def test_adopts_two_optimizers_of_one_model(watching: Any, read: Any) -> None:
    """Which loss was whose cannot be told before both are known: missing at first rather than wrong."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizers = [torch.optim.AdamW(part.parameters()) for part in model]
    with watching(model):
        for _ in range(2):
            model(torch.ones(1, 4)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
    run = read()
    assert [len(run.optimizer(i).steps) for i in range(2)] == [2, 2]
    for i in range(2):
        assert np.isfinite(run.optimizer(i).series("loss").values[1])
        assert np.isfinite(run.optimizer(i).series("grad_norm_used").values).all()


def test_an_optimizer_in_a_wrapper(watching: Any, read: Any) -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        def step(self) -> None:
            self.optimizer.step()

        def zero_grad(self) -> None:
            self.optimizer.zero_grad()

    model, optimizer = make()
    with watching(model, Wrapper(optimizer)):
        train(model, Wrapper(optimizer), 2)
    run = read()
    assert run.steps.tolist() == [1, 2]
    assert run.tensors[0].name == "weight"


def test_an_optimizer_that_another_one_steps(watching: Any, read: Any) -> None:
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner.param_groups, {})
            self.optimizer = inner

        def step(self, closure: Any = None) -> None:
            self.optimizer.step()

    model, optimizer = make()
    with watching(model, optimizer):
        train(model, Lookahead(optimizer), 2)
    assert read().steps.tolist() == [1, 2]


# ---- changes in mid-run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["after the step", "before the clip", "before the step"])
def test_add_param_group(watching: Any, read: Any, when: str) -> None:
    model, optimizer = make()
    late = torch.nn.Parameter(torch.ones(4))
    with watching(model, optimizer):
        for step in range(4):
            if step == 2 and when == "after the step":
                optimizer.add_param_group({"params": [late], "lr": 0.5})
            (model(torch.ones(3, 4) * (1 if step < 2 else late)).square().sum()).backward()
            if step == 2 and when == "before the clip":
                optimizer.add_param_group({"params": [late], "lr": 0.5})
            truth = [float(p.grad.norm()) for p in model.parameters()]
            torch.nn.utils.clip_grad_norm_([*model.parameters(), late], 0.1)
            if step == 2 and when == "before the step":
                optimizer.add_param_group({"params": [late], "lr": 0.5})
            optimizer.step()
            optimizer.zero_grad()
            late.grad = None
            if step == 2:
                at_change = truth
    run = read()
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert [t.name for t in run.tensors] == ["weight", "bias", "optimizer0.group1.0"]
    assert run.table("lr").values[:, 1].tolist() == pytest.approx([math.nan, math.nan, 0.5, 0.5], nan_ok=True)
    norms = run.table("grad_norm")
    row = norms.steps.tolist().index(3)
    for i in range(2):
        assert math.isnan(norms.values[row, i]) or norms.values[row, i] == pytest.approx(at_change[i], rel=1e-4)
    assert np.isfinite(norms.values[-1]).all()
    assert np.isfinite(run.series("loss").values).all()


def test_a_parameter_added_to_the_model_has_its_name(watching: Any, read: Any) -> None:
    model, optimizer = make()
    with watching(model, optimizer):
        train(model, optimizer)
        model.extra = torch.nn.Parameter(torch.ones(2))
        optimizer.add_param_group({"params": [model.extra]})
        train(model, optimizer)
    assert [t.name for t in read().tensors] == ["weight", "bias", "extra"]


def test_a_checkpoint_loaded_inside(watching: Any, read: Any) -> None:
    model, optimizer = make()
    train(model, optimizer, 10)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    model, optimizer = make()
    with watching(model, optimizer):
        optimizer.load_state_dict(copy.deepcopy(checkpoint))  # torch would go on counting in it
        train(model, optimizer, 2)
        assert read().steps.tolist() == [11, 12]
        optimizer.load_state_dict(copy.deepcopy(checkpoint))
        train(model, optimizer, 3)
    run = read()
    assert run.attempts == 1
    assert run.steps.tolist() == [11, 12, 13]
    assert run.series("applied_steps").values.tolist() == [11, 12, 13]


def test_a_fresh_state_loaded_inside_is_a_new_attempt(watching: Any, read: Any) -> None:
    model, optimizer = make()
    fresh = copy.deepcopy(optimizer.state_dict())
    with watching(model, optimizer):
        train(model, optimizer, 4)
        optimizer.load_state_dict(fresh)
        train(model, optimizer, 2)
    run = read()
    assert run.attempts == 2
    assert run.steps.tolist() == [1, 2]
    assert len(read(attempt=0).steps) == 4


# ---- other optimizers ----------------------------------------------------------------------------------------------------

OTHERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01),
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "SGD with nesterov, foreach": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_degrade(watching: Any, read: Any, name: str) -> None:
    model, _ = make()
    optimizer = OTHERS[name](model.parameters())
    norms, weights = [], []
    with watching(model, optimizer):
        for _ in range(4):
            model(torch.ones(3, 4)).square().sum().backward()
            norms.append([float(p.grad.norm()) for p in model.parameters()])
            weights.append([float(p.detach().norm()) for p in model.parameters()])
            optimizer.step()
            optimizer.zero_grad()
    run = read()
    assert run.steps.tolist() == [1, 2, 3, 4] and run.attempts == 1
    for metric, truth in (("grad_norm_used", norms), ("grad_norm", norms), ("weight_norm", weights)):
        assert run.table(metric).values[1:] == pytest.approx(np.array(truth), rel=1e-5)
    assert run.series("lr").values.tolist() == [0.01] * 4
    assert np.isfinite(run.series("loss").values).all()
    assert not run.has("update_norm", "tensor") and not run.has("update_norm")
    assert run.has("applied_update_norm", "tensor") and run.series("update_ratio").basis == "applied"
    if "SGD" in name:
        assert not run.has("applied_steps")
    else:
        assert run.series("applied_steps").values.tolist() == [1, 2, 3, 4]


def test_sparse_gradients(watching: Any, read: Any) -> None:
    model = torch.nn.ModuleDict({"e": torch.nn.Embedding(5, 4, sparse=True), "l": torch.nn.Linear(4, 2)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    truth = []
    with watching(model, optimizer):
        for _ in range(3):
            model["l"](model["e"](torch.tensor([1, 1, 2]))).square().sum().backward()
            truth.append(model["e"].weight.grad.to_dense())  # row 1 has two entries
            optimizer.step()
            assert not model["e"].weight.grad.is_coalesced(), "the user's gradient is as it was"
            optimizer.zero_grad()
    run = read()
    assert run.steps.tolist() == [1, 2, 3]
    assert np.isfinite(run.series("loss").values).all()
    for metric, of in (("grad_norm_used", torch.Tensor.norm), ("grad_absmax", lambda g: g.abs().max())):
        got = run.table(metric).series("e.weight").values[1:]
        np.testing.assert_allclose(got, [float(of(g)) for g in truth], rtol=1e-6)
    assert run.table("grad_zero_fraction").series("e.weight").values[1:] == pytest.approx([12 / 20] * 3)
    assert np.isfinite(run.series("grad_norm_used").values).all() and np.isfinite(run.series("update_ratio").values).all()


def test_a_model_in_bfloat16(watching: Any, read: Any) -> None:
    model = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watching(model, optimizer):
        for _ in range(3):
            model(torch.ones(3, 4, dtype=torch.bfloat16)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = read()
    assert np.isfinite(run.table("update_norm").values[1:]).all()
