"""DistributedDataParallel: copies are one model, each rank has a loss of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from agreement_of_ranks import agree
from distributed_training import BATCH, STEPS, batch, optimizer_of, plain_model, train
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import stabkit

Ranks = Callable[..., dict[int, Any]]
LONG = 60


def ddp(rank: int, logdir: str | None, micro: int = 1, **options: Any) -> Any:
    model = DistributedDataParallel(plain_model(), find_unused_parameters=True)
    optimizer = optimizer_of(model)
    losses = train(model, optimizer, logdir, rank, 2, micro=micro, quiet=lambda m: m.no_sync(), **options)
    return losses, {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def alone(logdir: Path, unused: bool = True, **options: Any) -> stabkit.RunLog:
    """The same training on one process, on the joined batches."""
    model = plain_model(unused)
    train(model, optimizer_of(model), str(logdir), **options)
    return stabkit.load(logdir)


def no_faults(run: stabkit.RunLog) -> None:
    assert not [event for event in run.events if event["event"] in ("fault", "unseen")]
    assert run.notes == ()


def test_copies_are_read_as_the_one_model_they_are(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    found = ranks(ddp, str(logdir))
    run = stabkit.load(logdir)
    no_faults(run)
    worst = agree(run, alone(tmp_path / "single"))
    assert worst < 1e-5
    losses = run.by_rank("loss")
    assert losses.tensors == ("rank0", "rank1")
    for rank in range(2):
        np.testing.assert_allclose(losses.series(f"rank{rank}").values, found[rank][0], rtol=1e-6)
    assert not np.allclose(losses.values[:, 0], losses.values[:, 1])


def test_accumulation_without_synchronisation(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    found = ranks(ddp, str(logdir), 3)
    run = stabkit.load(logdir)
    no_faults(run)
    agree(run, alone(tmp_path / "single", micro=3))
    assert run.series("backward_count").values.tolist() == [3.0] * STEPS
    np.testing.assert_allclose(run.by_rank("loss").series("rank1").values, found[1][0], rtol=1e-6)


def test_a_watched_run_is_the_unwatched_one(ranks: Ranks, logdir: Path) -> None:
    watched, unwatched = ranks(ddp, str(logdir), 2), ranks(ddp, None, 2)
    assert sorted(watched) == [0, 1] and watched == unwatched


def bad_batch(step: int, micro: int) -> Tensor:
    data = batch(step, micro)
    if step == LONG - 5:
        data[BATCH // 2 :] *= 100
    return data


def test_the_rank_with_the_bad_batch_is_named(ranks: Ranks, logdir: Path) -> None:
    ranks(long_ddp, str(logdir))
    diagnosis = stabkit.analyze(stabkit.load(logdir))
    (finding,) = (f for outcome in diagnosis.outcomes if outcome.rule == "SK201" for f in outcome.findings)
    assert finding.first_step == LONG - 5 and "it began on rank 1 alone" in finding.message


def long_ddp(rank: int, logdir: str) -> Any:
    return ddp(rank, logdir, steps=LONG, data=bad_batch)
