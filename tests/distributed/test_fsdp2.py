"""FSDP2: each rank measures its shards, the reader makes true norms of them, and nobody speaks a word more than without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from agreement_of_ranks import agree
from distributed_training import STEPS, Collectives, optimizer_of, plain_model, train
from test_ddp import alone, no_faults
from torch import nn

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
