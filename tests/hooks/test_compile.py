"""torch.compile: the same graphs with and without watch, the same bits, and what is recorded is true or missing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.utils import clip_grad_norm_

import stabkit

STEPS = 4


@dataclass
class Compiler:
    """A backend that counts: the graphs it was given are run as they are."""

    graphs: int = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        return graph.forward


@dataclass
class Account:
    """What a training was, with and without watch."""

    bits: list[bytes] = field(default_factory=list)
    graphs: int = 0
    breaks: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def norm_of(gradients: list[torch.Tensor]) -> float:
    return float(torch.stack([g.double().norm() for g in gradients]).norm())


def train(logdir: Path | None, compiled: str, adopt: bool = False, enter_at: int = 0, backend: Any = None) -> Account:
    """Train with one thing compiled, watched from a step on.

    Args:
        logdir: Where to record; None trains unwatched.
        compiled: "model", "optimizer step", "loss", "clip" or "whole step".
        adopt: Leave it to stabkit to find the optimizer.
        enter_at: How many steps are made before the watch begins.
        backend: Of torch.compile; by default one that counts.
    """
    torch._dynamo.reset()
    counters.clear()
    compiler = Compiler()
    account = Account()

    def maybe(part: str, what: Any, **options: Any) -> Any:
        return torch.compile(what, backend=backend or compiler, **options) if part == compiled else what

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=torch.tensor(0.01), foreach=False)
    run = maybe("model", model)
    loss_of = maybe("loss", lambda x: run(x).square().mean())
    clip = maybe("clip", lambda: clip_grad_norm_(parameters, 0.05))
    advance = maybe("optimizer step", optimizer.step)

    def whole(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        clip()
        advance()
        return loss

    step = maybe("whole step", whole)

    def one() -> None:
        x = torch.randn(3, 4)
        twin = torch.autograd.grad(model(x).square().mean(), parameters)
        account.norms.append(norm_of(list(twin)))
        account.losses.append(float(step(x)))
        account.used.append(norm_of([p.grad for p in parameters]))

    for _ in range(enter_at):
        one()
    given = None if adopt else optimizer
    with stabkit.watch(model, given, logdir, tensorboard=False) if logdir else contextlib.nullcontext():
        for _ in range(STEPS):
            one()
    account.bits = [p.detach().numpy().tobytes() for p in parameters]
    account.bits += [s[k].numpy().tobytes() for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq", "step")]
    account.graphs, account.breaks = compiler.graphs, sum(counters["graph_break"].values())
    return account


COMPILED = ["model", "loss", "clip", "optimizer step", "whole step"]
UNSEEN = {"whole step": {"grad_norm", "clip_max_norm"}, "clip": {"grad_norm", "clip_max_norm"}}
"""What cannot be seen from outside a graph: it is missing then, never wrong."""


@pytest.mark.parametrize("adopt", [False, True], ids=["explicit", "adopted"])
@pytest.mark.parametrize("compiled", COMPILED)
def test_the_same_graphs_and_bits_and_nothing_false(tmp_path: Path, compiled: str, adopt: bool) -> None:
    bare, watched = train(None, compiled), train(tmp_path / "run", compiled, adopt)
    assert bare.graphs > 0, "something was compiled"
    assert watched.graphs == bare.graphs
    assert watched.breaks <= bare.breaks
    assert watched.bits == bare.bits
    assert_true_or_missing(tmp_path / "run", watched, UNSEEN.get(compiled, set()))


def assert_true_or_missing(logdir: Path, truth: Account, unseen: set[str], enter_at: int = 0) -> None:
    run = stabkit.load(logdir)
    assert not [e for e in run.events if e["event"] == "fault"]
    assert run.steps.tolist() == list(range(enter_at + 1, enter_at + STEPS + 1))
    wanted = {
        "loss": truth.losses[enter_at:],
        "grad_norm": truth.norms[enter_at:],
        "grad_norm_used": truth.used[enter_at:],
        "clip_max_norm": [0.05] * STEPS,
        "lr": [pytest.approx(0.01)] * STEPS,
    }
    for name, values in wanted.items():
        got = run.series(name).values.tolist() if run.has(name) or name == "lr" else [math.nan] * STEPS
        if name in unseen:
            assert all(math.isnan(g) or g == pytest.approx(v, rel=1e-4) for g, v in zip(got, values, strict=True)), name
        else:
            assert got == pytest.approx(values, rel=1e-4) if name != "lr" else got == values, name


RECOMPILED = {"clip": 1, "whole step": 1}
"""A graph that calls a clipping function has a guard on what watch patches: it is compiled a second time, and that is all."""


@pytest.mark.parametrize("compiled", COMPILED)
def test_entering_a_watch_later_recompiles_nothing_but_clipping(tmp_path: Path, compiled: str) -> None:
    bare, watched = train(None, compiled, enter_at=3), train(tmp_path / "run", compiled, enter_at=3)
    assert watched.graphs == bare.graphs + RECOMPILED.get(compiled, 0)
    assert watched.breaks <= bare.breaks or compiled in RECOMPILED
    assert watched.bits == bare.bits
    assert_true_or_missing(tmp_path / "run", watched, UNSEEN.get(compiled, set()), enter_at=3)


def test_leaving_a_watch_recompiles_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiler = Compiler()
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    run, advance = torch.compile(model, backend=compiler), torch.compile(optimizer.step, backend=compiler)

    def steps() -> None:
        for _ in range(2):
            run(torch.ones(3, 4)).sum().backward()
            advance()
            optimizer.zero_grad()

    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        steps()
    compiled = compiler.graphs
    steps()
    assert compiler.graphs == compiled


def test_clipping_compiled_as_one_graph_stays_one_graph(tmp_path: Path) -> None:
    """fullgraph=True fails at any graph break: the wrap around clipping steps aside while it is traced."""
    compiler = Compiler()
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    clip = torch.compile(lambda: clip_grad_norm_(model.parameters(), 0.05), backend=compiler, fullgraph=True)
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            clip()
            optimizer.step()
            optimizer.zero_grad()
    assert compiler.graphs == 1
    run = stabkit.load(tmp_path / "run")
    assert not run.has("clip_max_norm")
    assert run.series("grad_norm_used").values.tolist() == pytest.approx([0.05] * 3, rel=1e-3)


def test_compiled_autograd_hides_no_loss_and_invents_none(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    compiler = Compiler()
    truth = []
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).square().sum()
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend=compiler)):
                loss.backward()
            truth.append(float(loss))
            optimizer.step()
    run = stabkit.load(tmp_path / "run")
    assert compiler.graphs > 0
    assert run.series("loss").values.tolist() == pytest.approx(truth, rel=1e-6)


class Attending(torch.nn.Module):
    """An attention by torch's function and one by torch's module, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x)
        x = x + torch.nn.functional.scaled_dot_product_attention(query, query, x)
        output: torch.Tensor = self.head(self.attention(x, x, x)[0])
        return output


def attend(logdir: Path | None, compiled: str, enter_at: int = 0) -> tuple[Account, stabkit.RunLog | None]:
    """Train a model whose forward pass is looked at; it is compiled as a whole, in place, in part, or with its loss."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    compiler, account, model = Compiler(), Account(), Attending()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if compiled == "in place":
        model.compile(backend=compiler)
    if compiled == "a part":
        model.head = torch.compile(model.head, backend=compiler)
    run = torch.compile(model, backend=compiler) if compiled in ("its wrapper", "the model beside it") else model
    watched = run if compiled == "its wrapper" else model

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(run(x).mT, y)

    lossy = torch.compile(loss_of, backend=compiler) if compiled == "loss" else loss_of

    def steps(count: int) -> None:
        for _ in range(count):
            loss = lossy(torch.randn(3, 5, 8), torch.randint(4, (3, 5)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(enter_at)
    with stabkit.watch(watched, optimizer, logdir, tensorboard=False, forward=True) if logdir else contextlib.nullcontext():
        steps(STEPS)
    account.bits = [p.detach().numpy().tobytes() for p in model.parameters()]
    account.graphs, account.breaks = compiler.graphs, sum(counters["graph_break"].values())
    return account, stabkit.load(logdir) if logdir else None


@pytest.mark.parametrize("compiled", ["in place", "a part", "its wrapper"])
def test_the_forward_pass_of_a_compiled_model_is_left_alone(tmp_path: Path, compiled: str) -> None:
    (bare, _), (watched, run) = attend(None, compiled, enter_at=2), attend(tmp_path / "run", compiled, enter_at=2)
    assert bare.graphs > 0, "something was compiled"
    assert (watched.graphs, watched.breaks, watched.bits) == (bare.graphs, bare.breaks, bare.bits)
    (told,) = [event for event in run.events if event["event"] == "not_looked_at"]
    assert told["why"].startswith("the model is compiled")
    assert not run.scalars


@pytest.mark.parametrize(("compiled", "enter_at"), [("the model beside it", 2), ("loss", 0)])
def test_graphs_made_without_the_watch_knowing_do_not_break(tmp_path: Path, compiled: str, enter_at: int) -> None:
    """One that calls an attention has a guard on what `forward=True` patches: it is compiled a second time, and that is all."""
    (bare, _), (watched, run) = attend(None, compiled, enter_at), attend(tmp_path / "run", compiled, enter_at)
    assert watched.graphs == bare.graphs + (enter_at > 0)
    assert (watched.breaks, watched.bits) == (bare.breaks, bare.bits)
    assert not [event for event in run.events if event["event"] == "fault"]


def test_a_graph_that_gradients_flow_through_ends_the_looking(tmp_path: Path) -> None:
    """The backend that counts leaves no trace in the graph of gradients; a real one does."""
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    run = torch.compile(model, backend="aot_eager")
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False, forward=True):
        for _ in range(3):
            torch.nn.functional.cross_entropy(run(torch.randn(5, 4)), torch.randint(3, (5,))).backward()
            optimizer.step()
    log = stabkit.load(tmp_path / "run")
    assert not log.scalars
    assert [event["why"][:21] for event in log.events if event["event"] == "not_looked_at"] == ["the model is compiled"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["model", "optimizer step", "whole step"])
def test_with_inductor(tmp_path: Path, compiled: str) -> None:
    bare = train(None, compiled, backend="inductor")
    watched = train(tmp_path / "run", compiled, backend="inductor")
    assert watched.breaks <= bare.breaks
    assert watched.bits == bare.bits
    assert_true_or_missing(tmp_path / "run", watched, UNSEEN.get(compiled, set()))
