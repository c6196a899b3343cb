"""`forward=True`: what is recorded of logits is true, nothing of the training is changed, and nothing stays behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import stabkit
from stabkit.hooks import forward, logits

WIDTH, HEADS, CLASSES = 16, 2, 5
NAMES = ("scaled_dot_product_attention", "_in_projection_packed", "_in_projection")


class Attention(nn.Module):
    """Attends as it is told to, and remembers the queries and keys of every call: float64 [batch, heads, time, d]."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, []
        self.scale = 0.5 if kind == "scaled" else None
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH // HEADS if kind == "grouped" else WIDTH)
        separate = {"kdim": WIDTH, "vdim": WIDTH} if kind == "separate" else {}
        self.torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **separate)
        self.weights = kind != "lean"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind in ("full", "lean", "separate"):
            query, key, _ = F.linear(x, self.torchs.in_proj_weight, self.torchs.in_proj_bias).chunk(3, -1)
            self._remember(query, key)
            return x + self.torchs(x, x, x, need_weights=self.weights)[0]
        projected = (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in projected)
        self._remember(self.query(x), self.key(x))
        if self.kind == "by hand":
            attended = torch.softmax(q @ k.mT, -1) @ v
        else:
            options = {"enable_gqa": True} if self.kind == "grouped" else {}
            v = v[:, :1] if self.kind == "grouped" else v
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, **options)
        return x + attended.transpose(1, 2).flatten(2)

    def _remember(self, query: torch.Tensor, key: torch.Tensor) -> None:
        q, k = (part.detach().double().unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2).numpy() for part in (query, key))
        self.calls.append((q, np.repeat(k, HEADS // k.shape[1], axis=1)))


class Model(nn.Module):
    def __init__(self, kind: str = "plain", dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.head = Attention(kind), nn.Linear(WIDTH, CLASSES, bias=False)
        self.dropout, self.recompute = nn.Dropout(dropout), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.recompute is None:
            return self.head(self.dropout(self.attention(x)))
        return self.head(self.dropout(checkpoint(self.attention, x.requires_grad_(), use_reentrant=self.recompute)))


def oracle(calls: list[Any], scale: float | None) -> tuple[float, float]:
    """(the bound, the largest |logit|) of all calls, head by head."""
    bound = exact = 0.0
    for queries, keys in calls:
        for q, k in zip(queries.reshape(-1, *queries.shape[2:]), keys.reshape(-1, *keys.shape[2:]), strict=True):
            factor = scale or q.shape[-1] ** -0.5
            bound = max(bound, factor * np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max())
            exact = max(exact, factor * np.abs(q @ k.T).max())
    return bound, exact


def train(
    model: Model, logdir: Path | None, steps: int = 4, micro_batches: int = 1,
    between: Callable[[int], Any] = lambda step: None, **options: Any,
) -> list[torch.Tensor]:
    """The logits that were given to the loss, of every call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    given = []
    watch = stabkit.watch(model, optimizer, logdir, tensorboard=False, **options) if logdir else contextlib.nullcontext()
    with watch:
        for step in range(1, steps + 1):
            for _ in range(micro_batches):
                output = model(torch.randn(3, 6, WIDTH)).flatten(0, 1)
                given.append(output.detach().clone())
                F.cross_entropy(output, torch.randint(CLASSES, (18,))).backward()
            between(step)
            optimizer.step()
            optimizer.zero_grad()
    return given


ATTEND = {"plain": "query", "scaled": "query", "grouped": "query", "full": "torchs.in_proj", "lean": "torchs.in_proj"}


@pytest.mark.parametrize("kind", ATTEND)
def test_the_bound_is_that_of_an_oracle_and_no_logit_is_larger(kind: str, logdir: Path) -> None:
    model = Model(kind)
    train(model, logdir, forward=True)
    table = stabkit.load(logdir).table("attention_logit_bound")
    weight = f"attention.{ATTEND[kind]}" + ("_weight" if "in_proj" in ATTEND[kind] else ".weight")
    assert table.tensors == (weight,) and table.steps.tolist() == [1, 2, 3, 4]
    truth = [oracle([call], model.attention.scale) for call in model.attention.calls]
    np.testing.assert_allclose(table.values[:, 0], [bound for bound, _ in truth], rtol=1e-5)
    assert all(exact <= bound < 4 * exact for bound, exact in truth)


def test_projections_of_their_own_are_seen_too(logdir: Path) -> None:
    attention, optimizer = nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=8), None
    optimizer = torch.optim.AdamW(attention.parameters())
    x, y = torch.randn(6, WIDTH), torch.randn(7, 8)  # without a batch
    q = (x @ attention.q_proj_weight.T).double().detach().unflatten(-1, (HEADS, -1)).transpose(0, 1).numpy()[None]
    k = (y @ attention.k_proj_weight.T).double().detach().unflatten(-1, (HEADS, -1)).transpose(0, 1).numpy()[None]
    with stabkit.watch(attention, optimizer, logdir, tensorboard=False, forward=True):
        attention(x, y, y)[0].square().sum().backward()
        optimizer.step()
    (bound,) = stabkit.load(logdir).table("attention_logit_bound").series("q_proj_weight").values
    assert bound == pytest.approx(oracle([(q, k)], None)[0], rel=1e-5)


def log_partition(rows: np.ndarray[Any, Any]) -> float:
    return float(np.mean(np.log(np.exp(rows.astype(np.float64)).sum(-1))) - np.log(rows.shape[-1]))


def test_the_output_is_that_of_an_oracle(logdir: Path) -> None:
    given = train(Model(), logdir, forward=True)
    series = stabkit.load(logdir).series("output_log_partition")
    np.testing.assert_allclose(series.values, [log_partition(output.numpy()) for output in given], rtol=1e-5, atol=1e-6)


def test_rows_that_are_ignored_do_not_count_and_classes_may_come_second() -> None:
    values, target = torch.randn(4, CLASSES, 3) * 3, torch.randint(CLASSES, (4, 3))
    target[0] = -100
    rows = values.movedim(1, -1)[1:].reshape(-1, CLASSES).numpy()
    assert logits.log_partition(values, target).item() == pytest.approx(log_partition(rows), abs=1e-6)
    assert logits.log_partition(values[0, :, 0]).item() == pytest.approx(log_partition(values[:1, :, 0].numpy()), abs=1e-6)
    assert logits.log_partition(values, torch.full((4, 3), -100)).isnan()
    everyone = logits.log_partition(values, torch.softmax(values, 1))
    assert everyone.item() == pytest.approx(log_partition(values.movedim(1, -1).reshape(-1, CLASSES).numpy()), abs=1e-6)


def test_of_many_logits_evenly_spaced_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000, CLASSES) * 3
    monkeypatch.setattr(logits, "LARGEST_SHARE", 500)
    assert logits._spaced(values.shape) == (slice(None, None, 11),)
    assert logits.log_partition(values).item() == pytest.approx(log_partition(values[::11].numpy()), abs=1e-6)
    images = logits._spaced(torch.Size((8, 64, 64, CLASSES)))
    assert torch.zeros(8, 64, 64, CLASSES)[images].numel() <= 500


def test_the_largest_of_the_micro_batches_counts(logdir: Path) -> None:
    model = Model()
    given = train(model, logdir, micro_batches=3, forward=True)
    run, calls = stabkit.load(logdir), model.attention.calls
    bounds = [oracle(calls[i : i + 3], None)[0] for i in range(0, 12, 3)]
    np.testing.assert_allclose(run.table("attention_logit_bound").values[:, 0], bounds, rtol=1e-5)
    sizes = [max((log_partition(o.numpy()) for o in given[i : i + 3]), key=abs) for i in range(0, 12, 3)]
    np.testing.assert_allclose(run.series("output_log_partition").values, sizes, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_pass_that_is_made_again_counts_once(reentrant: bool, logdir: Path, tmp_path: Path) -> None:
    runs = []
    for recompute, where in ((None, tmp_path / "once"), (reentrant, logdir)):
        torch.manual_seed(0)
        model = Model()
        model.recompute = recompute
        train(model, where, forward=True)
        runs.append(stabkit.load(where))
    assert len(model.attention.calls) == 8, "the case is what it says"
    for name in ("attention_logit_bound/attention.query.weight", "output_log_partition"):
        assert runs[0].scalars[name][1].tolist() == runs[1].scalars[name][1].tolist()


@pytest.mark.parametrize("kind", [*ATTEND, "by hand"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_not_a_bit_of_the_training_is_changed(kind: str, precision: str, logdir: Path) -> None:
    ends = []
    for where in (None, logdir):
        torch.manual_seed(0)
        model = Model(kind, dropout=0.1)
        model.recompute = False
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            train(model, where, micro_batches=2, **({"forward": True} if where else {}))
        ends.append([p.detach().numpy().tobytes() for p in model.parameters()] + [torch.get_rng_state().numpy().tobytes()])
    assert ends[0] == ends[1]
    run = stabkit.load(logdir)
    assert not [event for event in run.events if event["event"] in ("fault", "not_looked_at")]
    assert run.has("output_log_partition") and run.has("attention_logit_bound", "layer") == (kind != "by hand")


def test_an_attention_by_hand_is_not_judged(logdir: Path) -> None:
    train(Model("by hand"), logdir, forward=True)
    with pytest.raises(stabkit.errors.MissingMetricError, match="no attention_logit_bound per layer; it is recorded by"):
        stabkit.load(logdir).table("attention_logit_bound")


def test_what_does_not_train_is_not_looked_at(logdir: Path) -> None:
    model, other = Model(), Model()

    def evaluate(step: int) -> None:
        batch, target = 100 * torch.randn(3, 6, WIDTH), torch.zeros(18, dtype=torch.int64)
        with torch.no_grad():
            F.cross_entropy(model(batch).flatten(0, 1), target)
        model.eval()
        F.cross_entropy(model(batch.requires_grad_()).flatten(0, 1), target)
        model.train()
        F.cross_entropy(other(batch).flatten(0, 1), target).backward()

    train(model, logdir, between=evaluate, forward=True)
    run = stabkit.load(logdir)
    assert run.table("attention_logit_bound").values.max() < 10
    assert np.abs(run.series("output_log_partition").values).max() < 1
    assert oracle(model.attention.calls, None)[0] > 1000, "the case is what it says"


def test_every_other_step(logdir: Path) -> None:
    train(Model(), logdir, steps=5, forward=True, every=2)
    run = stabkit.load(logdir)
    assert run.table("attention_logit_bound").steps.tolist() == run.series("output_log_partition").steps.tolist() == [1, 3, 5]


def in_place() -> tuple[Any, ...]:
    return (*(getattr(F, name) for name in NAMES), torch._C._nn.cross_entropy_loss)


@pytest.fixture
def untouched() -> Iterator[tuple[Any, ...]]:
    before = in_place()
    yield before
    assert in_place() == before


def test_nothing_is_in_place_unless_it_is_asked_for(untouched: tuple[Any, ...], logdir: Path) -> None:
    train(Model(), logdir, between=lambda step: pytest.fail("patched") if in_place() != untouched else None)
    assert not stabkit.load(logdir).scalars


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind(error: type[BaseException], untouched: tuple[Any, ...], tmp_path: Path) -> None:
    def fail(step: int) -> None:
        assert in_place() != untouched
        raise error

    model = Model()
    with pytest.raises(error):
        train(model, tmp_path / "a", between=fail, forward=True)
    assert in_place() == untouched and not forward._seeing
    outer = stabkit.watch(model, None, tmp_path / "b", tensorboard=False, forward=True)
    with outer:
        train(model, tmp_path / "c", forward=True)
        assert in_place() != untouched
    assert in_place() == untouched
    assert stabkit.load(tmp_path / "b").has("attention_logit_bound", "layer")


def test_a_look_that_fails_ends_the_looking_and_nothing_else(
    untouched: tuple[Any, ...], logdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "attention_bound", lambda *args: 1 / 0)
    train(Model(), logdir, forward=True, between=lambda step: None)
    run = stabkit.load(logdir)
    (told,) = [event for event in run.events if event["event"] == "not_looked_at"]
    assert told["why"] == "ZeroDivisionError: division by zero"
    assert run.steps.tolist() == [1, 2, 3, 4] and not run.scalars


class Scripted(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.scaled_dot_product_attention(x, x, x), y)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_what_is_in_place_can_be_scripted(logdir: Path) -> None:
    with stabkit.watch(Model(), None, logdir, tensorboard=False, forward=True):
        scripted = torch.jit.script(Scripted())
        torch.jit.script(nn.MultiheadAttention(8, 2))
    x, y = torch.randn(4, 8), torch.randint(8, (4,))
    assert torch.equal(scripted(x, y), Scripted()(x, y))


def test_the_budget_pays_for_forward_looks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes far more than the budget allows is taken seldom, and the share of the time that is told counts it."""
    looks, slowness = 0, 0.02

    def slow(*args: Any) -> torch.Tensor:
        nonlocal looks
        looks += 1
        time.sleep(slowness)
        return logits.attention_bound(*args)

    monkeypatch.setattr(forward, "attention_bound", slow)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    steps, begin = 280, time.perf_counter()
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False, forward=True, budget=0.2):
        for _ in range(steps):
            loss = F.cross_entropy(model(torch.randn(2, 4, WIDTH)).flatten(0, 1), torch.zeros(8, dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        took = time.perf_counter() - begin
    told = [event["share"] for event in stabkit.load(tmp_path / "run").events if event["event"] == "cadence"]
    assert 0 < looks < 0.6 * steps
    assert told and told[0] > 0.9 * looks * slowness / took
