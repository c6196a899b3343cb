"""Meshes of two dimensions and tensor parallel models: copies of shards, and shards within a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement_of_ranks import agree
from distributed_training import optimizer_of, plain_model, train
from test_ddp import alone, no_faults

import stabkit

Ranks = Callable[..., dict[int, Any]]


def hybrid(rank: int, logdir: str) -> None:
    """Two copies of two shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
    model = plain_model()
    for part in (model.first, model.last, model):
        fully_shard(part, mesh=mesh)
    train(model, optimizer_of(model), logdir, rank, 4)


def test_copies_of_shards(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    ranks(hybrid, str(logdir), world=4)
    run = stabkit.load(logdir)
    no_faults(run)
    agree(run, alone(tmp_path / "single"))
    assert len(run.by_rank("loss").tensors) == 4
    assert [ranks[0].tensors[0].replica for ranks in run.ranks.values()] == [0, 0, 2, 2]


def tensor_parallel(rank: int, logdir: str) -> None:
    """Both processes see the whole batch and hold half of two layers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    train(model, optimizer_of(model), logdir, clip=lambda model: None)


def test_shards_within_layers(ranks: Ranks, logdir: Path, tmp_path: Path) -> None:
    ranks(tensor_parallel, str(logdir))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    train(model, optimizer_of(model), str(tmp_path / "single"), clip=lambda model: None)
    run, single = stabkit.load(logdir), stabkit.load(tmp_path / "single")
    no_faults(run)
    agree(run, single)
    np.testing.assert_allclose(run.by_rank("loss").values[:, 0], run.by_rank("loss").values[:, 1])


def partial_gradients(rank: int, logdir: str) -> None:
    """A replicated scale whose gradient each process knows a part of, until the optimizer adds them up."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    model = torch.nn.Module()
    model.scale = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()]))
    model.sharded = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    ones = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    optimizer = optimizer_of(model, foreach=False)
    with stabkit.watch(model, optimizer, logdir, tensorboard=False):
        for step in range(1, 4):
            x = DTensor.from_local(torch.full((2, 4), float(step + rank)), mesh, [Shard(0)])
            ((x * model.scale).sum() + (model.sharded * ones * step).sum()).backward()
            assert any(placement.is_partial() for placement in model.scale.grad.placements)
            optimizer.step()
            optimizer.zero_grad()


def test_a_gradient_that_is_still_to_be_added_up_is_missing_and_no_norm_is_told_without_it(ranks: Ranks, logdir: Path) -> None:
    assert sorted(ranks(partial_gradients, str(logdir))) == [0, 1]
    run = stabkit.load(logdir)
    no_faults(run)
    used = run.table("grad_norm_used")
    assert np.isnan(used.series("scale").values).all()
    np.testing.assert_allclose(used.series("sharded").values[1:], [2.0, 4.0, 6.0], rtol=1e-6)
    assert not run.has("grad_norm_used") and run.has("weight_norm")
