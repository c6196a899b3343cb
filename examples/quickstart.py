"""The smallest use of stabkit: an ordinary training loop with one line added, and what it says about the run.

    python examples/quickstart.py
    python examples/quickstart.py --lr 0.002 --warmup 20        # about what the first run's finding advises

The model guesses the next byte of Python's own standard library from the 16 bytes before it. The default learning rate of 0.03
is far too high for a start without a warmup: the loss falls all the same, but further where the advice is taken.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import stabkit

CONTEXT = 16

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--logdir", type=Path, default=Path("runs/quickstart"), help="where to record (default: %(default)s)")
parser.add_argument("--lr", type=float, default=0.03, help="peak learning rate (default: %(default)s)")
parser.add_argument("--warmup", type=int, default=0, help="steps of linear warmup (default: %(default)s)")
parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: %(default)s)")
args = parser.parse_args()

# The data: every window of 17 bytes is an example.
sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Embedding(256, 32),
    nn.Flatten(),
    nn.Linear(CONTEXT * 32, 256),
    nn.GELU(),
    nn.Linear(256, 256),
    nn.GELU(),
    nn.Linear(256, 256),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / max(1, args.warmup)))

with stabkit.watch(model, optimizer, args.logdir):  # the only added line
    for step in range(1, args.steps + 1):
        starts = torch.randint(len(text) - CONTEXT, (64, 1))
        windows = text[starts + torch.arange(CONTEXT + 1)].long()
        loss = F.cross_entropy(model(windows[:, :-1]), windows[:, -1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == 1 or step % 50 == 0:
            print(f"step {step:4}   loss {loss.item():.3f}")

# In a notebook or a script; on the command line: stabkit analyze runs/quickstart
diagnosis = stabkit.analyze(stabkit.load(args.logdir))
print()
for finding in diagnosis.findings:
    print(f"{finding.severity} {finding.rule} {finding.name}: {finding.message}")
    print(f"    {finding.advice}")
if not diagnosis.findings:
    looked = sum(str(outcome.status) == "clear" for outcome in diagnosis.outcomes)
    print(f"nothing found; {looked} of {len(diagnosis.outcomes)} rules could look")
