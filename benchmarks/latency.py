"""How long after an event `on_finding` is called: in steps that the training has gone on, and in seconds.

    python -m benchmarks.latency [--repeats 3] [--write]

The demo model trains; from one step on its rate is thirty times as high, or at one step alone its gradient is two thousand
times as large. What is reported is the first warning or error that the callback hears: the step at which the training is then,
less the finding's `first_step`, over events at several steps, at the demo's own pace and with 20 ms pauses in place of a
model's work. `--write` keeps the result in
benchmarks/results/LATENCY.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from stabkit.demo import GPT, Recipe, batches, standard_library_text
from stabkit.finding import Finding, Severity

RESULTS = Path(__file__).parent / "results" / "LATENCY.md"
STEPS_AFTER = 60
"""How long a training goes on after its event."""
FIRST_EVENT = 100


@dataclass(frozen=True)
class Told:
    """One call: of which finding, when."""

    rule: str
    first_step: int
    at_step: int
    seconds: float


def demo_sized() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor], float]:
    """The demo's model, its loss on the next batch, and no pause."""
    data = batches(standard_library_text(), Recipe())

    def loss(model: nn.Module) -> torch.Tensor:
        inputs, targets = next(data)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return GPT(), loss, 0.0


def small() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor], float]:
    """A perceptron on noisy points, and pauses of 20 ms."""
    generator = torch.Generator().manual_seed(0)

    def loss(model: nn.Module) -> torch.Tensor:
        x = torch.rand(64, 8, generator=generator)
        return F.mse_loss(model(x), x.sin().sum(1, keepdim=True) + 0.3 * torch.randn(64, 1, generator=generator))

    return nn.Sequential(nn.Linear(8, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1)), loss, 0.02


def told(make: Callable[[], tuple[nn.Module, Callable[[nn.Module], torch.Tensor], float]], event: str, at: int) -> Told | None:
    """Train with an event at a step; the first warning or error after it, None where there was none in time."""
    torch.manual_seed(at)
    model, loss_of, pause = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ended: list[float] = [time.perf_counter()]  # when each step ended
    calls: list[Told] = []
    heard = threading.Event()

    def on_finding(finding: Finding) -> None:
        if finding.severity >= Severity.WARNING and finding.first_step >= at and not heard.is_set():
            now = time.perf_counter()
            calls.append(Told(finding.rule, finding.first_step, len(ended) - 1, now - ended[finding.first_step]))
            heard.set()

    with (
        tempfile.TemporaryDirectory() as folder,
        stabkit.watch(model, optimizer, Path(folder) / "run", tensorboard=False, on_finding=on_finding),
    ):
        for step in range(1, at + STEPS_AFTER + 1):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, step / 20) * (30 if event == "rate" and step >= at else 1)
            loss = loss_of(model)
            optimizer.zero_grad()
            (loss * (2000 if event == "gradient" and step == at else 1)).backward()
            optimizer.step()
            time.sleep(pause)
            ended.append(time.perf_counter())
            if heard.is_set():
                break
        trained = len(ended) - 1
    return calls[0] if calls and calls[0].at_step <= trained and calls[0].at_step < at + STEPS_AFTER else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name, make in (("demo model, 3.3 million parameters", demo_sized), ("perceptron, 20 ms pauses", small)):
        for event in ("rate", "gradient"):
            results = [told(make, event, FIRST_EVENT + 17 * repeat) for repeat in range(args.repeats)]
            heard = [each for each in results if each]
            rules = ", ".join(sorted({each.rule for each in heard})) or "–"
            steps = [each.at_step - each.first_step for each in heard]
            seconds = [each.seconds for each in heard]
            figures = "– | – | –"
            if heard:
                figures = f"{statistics.median(steps):g} | {max(steps)} | {statistics.median(seconds):.2f}"
            rows.append(f"| {name} | {event} | {len(heard)} of {len(results)} | {rules} | {figures} |")
            print(rows[-1], flush=True)
    text = "\n".join([
        "# How soon `on_finding` is called",
        "",
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, Python "
        f"{platform.python_version()}. `python -m benchmarks.latency --repeats {args.repeats} --write`",
        "",
        f"Told: of how many events within {STEPS_AFTER} steps, while the training went on.",
        "",
        "| training | event | told | rules | steps after `first_step`, median | worst | seconds, median |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
