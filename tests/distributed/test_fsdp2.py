"""FSDP2: each rank measures its shards, the reader makes true norms of them, and nobody speaks a word more than without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement_of_ranks import agree
from distributed_training import STEPS, Collectives, optimizer_of, plain_model, train
from test_ddp import alone, no_faults
from torch import nn
from torch.nn.utils import clip_grad_norm_

import stabkit

Ranks = Callable[..., dict[int, Any]]


def sharded_model() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = plain_model()
    for part in (model.first, model.last):
        fully_shard(part)
    fully_shard(model)
    return model


class Quiet:
    """Gradients are not reduced inside."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self._model.set_requires_gradient_sync(True)


def fsdp2(rank: int, logdir: str | None, micro: int = 1, count: bool = False, quiet: bool = False, **options: Any) -> Any:
    model = sharded_model()
    optimizer = optimizer_of(model)
    silence = {"quiet": Quiet} if quiet else {}
    with Collectives() if count else nullcontext() as mode:
        losses = train(model, optimizer, logdir, rank, 2, micro=micro, **silence, **options)
    state = {name: value.to_local().numpy().tobytes() for name, value in model.state_dict().items()}
    moments = [value.to_local().numpy().tobytes() for p in model.parameters() for key, value in optimizer.state[p].items()
               if key != "step"]  # fmt: skip
    return losses, state, moments, mode.counts if mode else {}


def test_shards_are_read_as_the_one_model_they_are(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    found = ranks(fsdp2, str(logdir))
    run = stabkit.load(logdir)
    no_faults(run)
    agree(run, alone(tmp_path / "single"))
    np.testing.assert_allclose(run.by_rank("loss").series("rank1").values, found[1][0], rtol=1e-6)
    assert not stabkit.load(logdir / "rank00001").has("weight_norm"), "one rank alone knows no norm of the whole"


def test_accumulation_with_and_without_synchronisation(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    single = alone(tmp_path / "single", micro=3)
    for quiet in (False, True):
        found = ranks(fsdp2, str(logdir / str(quiet)), 3, False, quiet)
        run = stabkit.load(logdir / str(quiet))
        no_faults(run)
        agree(run, single)
        assert run.series("backward_count").values.tolist() == [3.0] * STEPS
        np.testing.assert_allclose(run.by_rank("loss").series("rank1").values, found[1][0], rtol=1e-6)


def test_watching_adds_no_collective_and_changes_no_bit(ranks: Ranks, logdir: Path) -> None:
    watched, unwatched = ranks(fsdp2, str(logdir), 2, True), ranks(fsdp2, None, 2, True)
    assert sorted(watched) == [0, 1] and sum(watched[0][3].values()) > STEPS
    assert watched == unwatched
    no_faults(stabkit.load(logdir))


def by_hand_at_once(model: nn.Module) -> None:
    """Halves all gradients in one call that torch keeps no count of."""
    torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], 0.5)


def by_hand(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(0.5)


def by_value(model: nn.Module) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.05)


def one_by_one(model: nn.Module) -> None:
    clip_grad_norm_(model.parameters(), 0.5, foreach=False)


def beforehand(model: nn.Module) -> None:
    """As torchtitan does."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    nn.utils.clip_grads_with_norm_(model.parameters(), 0.5, nn.utils.get_total_norm(grads))


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "single-tensor steps, clipped one by one": ({"foreach": False}, {"clip": one_by_one}, ""),
    "amsgrad and a copy of the weights": ({"amsgrad": True}, {"exact_updates": True}, ""),
    "clipped by value, every second step": ({}, {"clip": by_value, "every": 2}, ""),
    "the norm worked out beforehand": ({}, {"clip": beforehand}, ""),
    "clipped by hand": ({}, {"clip": by_hand}, "grad_norm"),
    "clipped by hand at once": ({}, {"clip": by_hand_at_once}, "grad_norm"),
}


def variants(rank: int, logdir: str) -> None:
    for name, (options, watch, _) in VARIANTS.items():
        model = sharded_model()
        train(model, optimizer_of(model, **options), f"{logdir}/{name}", rank, 2, **watch)


def test_variants_of_step_and_clipping(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    """What cannot be proved is missing, and never wrong."""
    assert sorted(ranks(variants, str(logdir))) == [0, 1]
    for name, (options, watch, unproved) in VARIANTS.items():
        model = plain_model()
        train(model, optimizer_of(model, **options), str(tmp_path / name), **watch)
        run, single = stabkit.load(logdir / name), stabkit.load(tmp_path / name)
        no_faults(run)
        # A difference of two rounded weights is as good as their last bits, in which two trainings are never the same.
        agree(run, single, unproved=(unproved,), tolerance=1e-4 if watch.get("exact_updates") else 1e-5)
        assert run.has("grad_norm") == (not unproved), name
