"""Processes that end and jobs that begin: a rank that is killed, a second job in the same directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_training import be_rank, free_port, optimizer_of, plain_model, train
from torch.nn.parallel import DistributedDataParallel

import stabkit
from stabkit.errors import UsageError

LAST = 4


def killed(rank: int, logdir: str) -> None:
    """Rank 1 ends by SIGKILL after four steps, in the middle of its fifth."""

    def die(step: int) -> None:
        if rank == 1 and step > LAST:
            os.kill(os.getpid(), signal.SIGKILL)

    model = DistributedDataParallel(plain_model(unused=False))
    train(model, optimizer_of(model), logdir, rank, 2, steps=50, before=die)


def test_a_killed_rank_leaves_its_steps_and_all_of_the_others(processes: Any, logdir: Path) -> None:
    port, told = free_port(), processes.Queue()
    group = [processes.Process(target=be_rank, args=(rank, 2, port, killed, (str(logdir),), told)) for rank in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(60)
    assert group[1].exitcode == -signal.SIGKILL and group[0].exitcode == 1, "gloo tells the other that its peer is gone"
    run = stabkit.load(logdir)
    assert run.steps.tolist() == list(range(1, LAST + 1))
    assert np.isfinite(run.by_rank("loss").values).all() and np.isfinite(run.series("grad_norm").values).all()
    assert [note for note in run.notes if note.startswith(f"rank 1 ended after step {LAST} without closing its log")]
    assert not [note for note in run.notes if "rank 0" in note]


def second_job(rank: int, logdir: str) -> str:
    model = torch.nn.Linear(2, 1)
    with stabkit.watch(model, torch.optim.AdamW(model.parameters()), logdir, tensorboard=False) as watching:
        torch.distributed.barrier()
        return str(watching.logdir)


def test_a_second_job_gets_a_directory_of_its_own_on_all_its_ranks(ranks: Callable[..., dict[int, Any]], logdir: Path) -> None:
    model = torch.nn.Linear(2, 1)
    with stabkit.watch(model, torch.optim.AdamW(model.parameters()), logdir, tensorboard=False):
        assert ranks(second_job, str(logdir)) == {0: f"{logdir}.2", 1: f"{logdir}.2"}
    assert ranks(second_job, str(logdir)) == {0: str(logdir), 1: str(logdir)}


def without_a_directory(rank: int) -> str:
    model = torch.nn.Linear(2, 1)
    with pytest.raises(UsageError) as error, stabkit.watch(model):
        pass
    return str(error.value)


def test_several_processes_must_be_given_a_directory(ranks: Callable[..., dict[int, Any]]) -> None:
    told = ranks(without_a_directory)
    assert "pass the same logdir" in told[0] and told[0] == told[1]
