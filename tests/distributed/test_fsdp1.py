"""FSDP1: pieces of flat parameters carry the names and shapes of the tensors they are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement_of_ranks import agree
from distributed_training import STEPS, Collectives, optimizer_of, plain_model, train
from test_ddp import alone, no_faults

import stabkit

Ranks = Callable[..., dict[int, Any]]


def fsdp1(rank: int, logdir: str | None, original: bool, micro: int = 1, quiet: bool = False, **options: Any) -> Any:
    """Without the unused parameter: in a flat parameter it gets a gradient of zeros, and is decayed."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    policy = ModuleWrapPolicy({torch.nn.Linear})
    model = FSDP(plain_model(unused=False), auto_wrap_policy=policy, use_orig_params=original, device_id=torch.device("cpu"))
    optimizer = optimizer_of(model)
    silence = {"quiet": lambda m: m.no_sync()} if quiet else {}
    clip = options.pop("clip", lambda m: m.clip_grad_norm_(0.5))
    with Collectives() as mode:
        losses = train(model, optimizer, logdir, rank, 2, micro=micro, clip=clip, **silence, **options)
    state = [p.detach().numpy().tobytes() for p in model.parameters()]
    moments = [value.numpy().tobytes() for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return losses, state, moments, mode.counts


@pytest.mark.parametrize("original", [True, False], ids=["original parameters", "flat parameters"])
def test_pieces_are_read_as_the_one_model_they_are(ranks: Ranks, logdir: Path, tmp_path: Path, original: bool) -> None:
    found = ranks(fsdp1, str(logdir), original)
    run = stabkit.load(logdir)
    no_faults(run)
    agree(run, alone(tmp_path / "single", unused=False))
    np.testing.assert_allclose(run.by_rank("loss").series("rank1").values, found[1][0], rtol=1e-6)


@pytest.mark.parametrize("original", [True, False], ids=["original parameters", "flat parameters"])
def test_accumulation_without_synchronisation(ranks: Ranks, logdir: Path, tmp_path: Path, original: bool) -> None:
    ranks(fsdp1, str(logdir), original, 3, True)
    run = stabkit.load(logdir)
    no_faults(run)
    # Between the backward calls FSDP1 puts other gradients in the place of original parameters': nothing can be proved of them.
    agree(run, alone(tmp_path / "single", unused=False, micro=3), unproved=("grad_norm",) if original else ())
    assert run.series("backward_count").values.tolist() == [3.0] * STEPS


@pytest.mark.parametrize("original", [True, False], ids=["original parameters", "flat parameters"])
def test_watching_adds_no_collective_and_changes_no_bit(ranks: Ranks, logdir: Path, original: bool) -> None:
    watched, unwatched = ranks(fsdp1, str(logdir), original), ranks(fsdp1, None, original)
    assert sorted(watched) == [0, 1] and sum(watched[0][3].values()) > STEPS
    assert watched == unwatched
    no_faults(stabkit.load(logdir))
