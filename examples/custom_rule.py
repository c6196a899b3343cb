"""A rule of your own, beside the built-in ones: it finds matrices that hardly learn.

    python examples/custom_rule.py                # trains a small model whose middle layer got a wrong rate, and judges it
    python examples/custom_rule.py --page         # prints the rule's page
    python examples/custom_rule.py --healthy      # the same training with the right rate

A rule is any object with a `rule` and a method `analyze(run)` that yields findings. It needs no torch: it reads the log.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from stabkit.analyzers import ANALYZERS, Rule
from stabkit.analyzers.base import found
from stabkit.analyzers.series import episodes, lasts
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.report import pages, text
from stabkit.report.terminal import open_console

CONTEXT = 16


class ColdLayer:
    """MY101 cold-layer.

    What it reports:    A matrix that learns a hundredfold slower than the others.
    Why it matters:     The layers around it are fitted to what it happened to be at initialisation.
    How it decides:     Update norm over weight norm of the matrix, below a hundredth of the median matrix's, 20 steps in a row.
    Known false alarms: A layer that is given a small rate on purpose, such as a pretrained one.
    What to try:        Look up which parameter group the matrix is in, and that group's rate.
    """

    rule = Rule(
        code="MY101",
        name="cold-layer",
        severity=Severity.WARNING,
        requires=(("update_ratio", "tensor"),),  # a log without it is told to the user; `analyze` is not called
        min_steps=20,
    )
    times_slower, patience = 100, 20

    def analyze(self, run: stabkit.RunLog) -> Iterator[Finding]:
        """One finding per matrix and episode."""
        table = run.table("update_ratio")
        matrices = [i for i, tensor in enumerate(run.tensors) if tensor.role == "matrix"]
        measured = np.isfinite(table.values[:, matrices]).any(axis=1)
        steps, ratios = table.steps[measured], table.values[measured][:, matrices]
        median = np.nanmedian(ratios, axis=1)
        cold = ratios * self.times_slower < median[:, None]
        for column, tensor in enumerate(run.tensors[i] for i in matrices):
            for first, last in episodes(cold[:, column]):
                sure = first + self.patience - 1  # a finding rests on nothing that came after its first step
                if sure > last:
                    continue
                observed, usual, step = float(ratios[sure, column]), float(median[sure]), int(steps[sure])
                yield found(
                    self.rule,
                    message=f"{tensor.name} moves {usual / max(observed, 1e-30):.0f} times slower than the median matrix",
                    first_step=step,
                    last_step=int(steps[last]),
                    state=State.ONGOING if lasts(last, len(steps)) else State.RECOVERED,
                    tensors=(tensor.name,),
                    evidence=(
                        Evidence(metric="update_ratio", observed=observed, expected=usual, step=step, tensor=tensor.name,
                                 note="the median matrix"),
                    ),
                    advice=f"Look at the rate of parameter group {tensor.group}, which {tensor.name} is in.",
                )  # fmt: skip


def train(logdir: Path, rate_of_the_middle: float, steps: int) -> None:
    """Guess the next byte of the standard library's source from the 16 before it."""
    source = bytearray(Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes())
    data = torch.frombuffer(source, dtype=torch.uint8)
    torch.manual_seed(0)
    middle = nn.Linear(128, 128)
    model = nn.Sequential(
        nn.Embedding(256, 16), nn.Flatten(), nn.Linear(CONTEXT * 16, 128), nn.GELU(), middle, nn.GELU(), nn.Linear(128, 256)
    )
    others = [p for layer in model if layer is not middle for p in layer.parameters()]
    optimizer = torch.optim.AdamW(others, lr=1e-3)
    optimizer.add_param_group({"params": middle.parameters(), "lr": rate_of_the_middle})
    with stabkit.watch(model, optimizer, logdir):
        for _ in range(steps):
            windows = data[torch.randint(len(data) - CONTEXT, (64, 1)) + torch.arange(CONTEXT + 1)].long()
            loss = F.cross_entropy(model(windows[:, :-1]), windows[:, -1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def page_of(rule: Rule, docstring: str) -> pages.RulePage:
    """What `stabkit explain` would show, were this rule in the catalogue."""
    needs = tuple(f"{metric} per {scope}" for metric, scope in rule.requires)
    return pages.RulePage(
        code=rule.code, name=rule.name, severity=rule.severity, requires=needs, min_steps=rule.min_steps, docstring=docstring
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", type=Path, default=Path("runs/custom_rule"), help="where to record (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--healthy", action="store_true", help="train the middle layer at the rate of the others")
    parser.add_argument("--page", action="store_true", help="print the rule's page and end")
    args = parser.parse_args()
    console = open_console(sys.stdout)
    if args.page:
        pages.page(page_of(ColdLayer.rule, inspect.getdoc(ColdLayer) or ""), console)
        return
    train(args.logdir, 1e-3 if args.healthy else 1e-6, args.steps)
    diagnosis = stabkit.analyze(stabkit.load(args.logdir), (*ANALYZERS, ColdLayer()))
    text.report(diagnosis, console)


if __name__ == "__main__":
    main()
