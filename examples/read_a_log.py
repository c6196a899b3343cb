"""Reads what a run recorded: series, tables, attempts, and the files themselves with nothing but NumPy.

    python examples/quickstart.py                 # records runs/quickstart
    python examples/read_a_log.py                 # reads it; writes its table of steps to runs/read_a_log/steps.csv

Reading needs no torch: a log can be looked at on any machine it is copied to.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

import stabkit
from stabkit.errors import MissingMetricError

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("log", type=Path, nargs="?", default=Path("runs/quickstart"), help="default: %(default)s")
parser.add_argument("--directory", type=Path, default=Path("runs/read_a_log"), help="for the CSV file (default: %(default)s)")
args = parser.parse_args()

run = stabkit.load(args.log)
print(f"{run.path}: {len(run.steps)} steps, {len(run.tensors)} tensors, recorded with torch {run.facts['torch']}")

# One number per step. A step is an attempted optimizer step, counted from 1; NaN is a value that is missing.
loss = run.series("loss")
print(f"loss {loss.values[0]:.3f} at step {loss.steps[0]}, {loss.values[-1]:.3f} at step {loss.steps[-1]}")

# One number per step and tensor. A run's first row may be step 0, the weights at entry, where there is no update yet.
updates = run.table("update_ratio")
median = np.nanmedian(updates.values[updates.steps >= 1], axis=0)
print("update to weight ratio, median over the steps, the largest first:")
for i in np.argsort(-median)[:5]:
    print(f"    {updates.tensors[i]:16} {median[i]:.2e}")

# One tensor by name.
norm = run.series("grad_norm_used", tensor=updates.tensors[int(np.argmax(median))])
print(f"gradient norm of {norm.tensor}: {np.nanmin(norm.values):.3g} to {np.nanmax(norm.values):.3g}")

# A quantity that was not recorded is an error that says what would have recorded it.
try:
    run.series("loss_scale")
except MissingMetricError as error:
    print(f"not there: {error}")

# Every `watch` on the same directory is an attempt; `load` gives the last one unless asked for another.
for attempt in range(run.attempts):
    earlier = stabkit.load(args.log, attempt)
    print(f"attempt {attempt}: {len(earlier.steps)} steps, last loss {earlier.series('loss').values[-1]:.3f}")

# The files are ordinary .npy. A memory map of a closed segment reads only what is looked at, however long the run was.
for path in sorted(args.log.glob("rank00000/optimizer0/tensors-*.npy")):
    records = np.load(path, mmap_mode="r")
    largest, steps = np.nanmax(records["tensors"]["grad_absmax"]), records["step"]
    print(f"{path.name}: steps {steps[0]} to {steps[-1]}, largest gradient element {largest:.3g}")

# And out of here: a table of steps for a spreadsheet.
columns = [name for name in ("loss", "lr", "grad_norm_used", "weight_norm", "update_norm") if run.has(name)]
args.directory.mkdir(parents=True, exist_ok=True)
with open(args.directory / "steps.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["step", *columns])
    writer.writerows(zip(run.steps.tolist(), *(run.series(name).values.tolist() for name in columns), strict=True))
print(f"wrote {file.name}")
