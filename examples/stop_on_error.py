"""End a training when stabkit finds an error in it, and name the batch that it came from.

    python examples/stop_on_error.py                    # one of the data files holds a value that is not a number
    python examples/stop_on_error.py --healthy          # the same training without it

`on_finding` is called from another thread, a few steps after the event. It sets a flag; the loop looks at the flag, and is the
only one that touches the model. Watching, judging and calling change no bit of the training.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import torch
from torch import nn

import stabkit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--logdir", type=Path, default=Path("runs/stop_on_error"), help="where to record (default: %(default)s)")
parser.add_argument("--steps", type=int, default=3000, help="optimizer steps (default: %(default)s)")
parser.add_argument("--healthy", action="store_true", help="leave the bad value out")
args = parser.parse_args()

torch.manual_seed(0)
files = {f"part-{number:04}": torch.randn(32, 8) for number in range(100)}
if not args.healthy:
    files["part-0041"][7, 3] = torch.inf
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
stop = threading.Event()


def on_finding(finding: stabkit.Finding) -> None:
    """Print it; an error ends the training."""
    print(f"{finding.severity} {finding.rule} {finding.name}: {finding.message}")
    if finding.severity is stabkit.Severity.ERROR:
        print(f"go back to a checkpoint at or before step {finding.last_good_step}")
        stop.set()


names = list(files)
with stabkit.watch(model, optimizer, args.logdir, on_finding=on_finding) as watch:
    for step in range(1, args.steps + 1):
        name = names[step % len(names)]
        watch.log(batch=name)  # a finding names the batches of its steps
        inputs = files[name]
        loss = (model(inputs) - inputs.nan_to_num(posinf=0.0).sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.01)  # as if the model were a larger one
        if stop.is_set():
            break
print(f"ended after step {step} of {args.steps}")
