"""Several processes that train one model, watched: the added line is the same as on one.

    torchrun --standalone --nproc-per-node 2 examples/ddp.py
    torchrun --standalone --nproc-per-node 2 examples/ddp.py --shard            # FSDP2 instead of DistributedDataParallel
    torchrun --standalone --nproc-per-node 2 examples/ddp.py --bad-rank 1       # one process meets a bad batch: which?

All processes give the same log directory, each records its own part in it, and `stabkit.load` reads them as one run: true
norms of sharded tensors, the mean of the losses, and the loss of each rank by itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import stabkit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--logdir", type=Path, default=Path("runs/ddp"), help="where to record (default: %(default)s)")
parser.add_argument("--steps", type=int, default=60, help="optimizer steps (default: %(default)s)")
parser.add_argument("--shard", action="store_true", help="shard the model with fully_shard")
parser.add_argument("--bad-rank", type=int, default=-1, help="the rank that meets a bad batch towards the end (default: none)")
args = parser.parse_args()

dist.init_process_group("gloo")
rank = dist.get_rank()

torch.manual_seed(0)  # the same weights everywhere
layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
if args.shard:
    from torch.distributed.fsdp import fully_shard

    for layer in layers:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    model: nn.Module = fully_shard(layers)
else:
    model = DistributedDataParallel(layers)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

data = torch.Generator().manual_seed(1 + rank)  # other data on each
with stabkit.watch(model, optimizer, args.logdir):  # the only added line
    for step in range(1, args.steps + 1):
        inputs = torch.randn(32, 16, generator=data)
        targets = inputs.sum(1, keepdim=True).sin()
        if rank == args.bad_rank and step == args.steps - 5:
            targets = targets * 1000
        loss = F.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

dist.barrier()
if rank == 0:
    run = stabkit.load(args.logdir)
    print(f"{len(run.steps)} steps of {len(run.ranks)} processes; loss {run.series('loss').values[-1]:.3f}")
    losses = run.by_rank("loss")
    last = zip(losses.tensors, losses.values[-1], strict=True)
    print("last losses by rank:", ", ".join(f"{name} {value:.3f}" for name, value in last))
    for finding in stabkit.analyze(run).findings:
        for told in (finding, *finding.consequences):
            print(f"{told.severity} {told.rule} {told.name}: {told.message}")
dist.destroy_process_group()
