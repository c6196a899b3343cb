"""Real trainings to be compared: a small network on noisy data, each run but the first with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import stabkit

STEPS = 160


@dataclass(frozen=True)
class Change:
    """What is other than in the usual run, and from which step on."""

    step: int = 0
    rate: float = 1.0
    order: int = 0
    poke: float = 1.0
    nan: bool = False
    reload: float = 1.0


def train(folder: Path, seed: int = 0, change: Change | None = None, steps: int = STEPS, decay: float = 0.0) -> Path:
    """Train, and give back where the log lies. `change` may alter the rate, the data, one tensor's gradient or its weights."""
    change = change or Change()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    data = torch.Generator().manual_seed(seed + 100)
    middle: nn.Linear = model[2]  # type: ignore[assignment]
    with stabkit.watch(model, optimizer, folder, tensorboard=False):
        for step in range(1, steps + 1):
            now = change.step and step >= change.step
            if now and step == change.step:
                if change.order:
                    data.manual_seed(seed + 100 + change.order)
                with torch.no_grad():  # before anything else of the step
                    middle.weight.mul_(change.reload)
            optimizer.param_groups[0]["lr"] = 1e-2 * (change.rate if now else 1.0)
            inputs = torch.randn(32, 8, generator=data)
            wanted = inputs.sin().sum(dim=1, keepdim=True) + 0.1 * torch.randn(32, 1, generator=data)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), wanted)
            (loss * float("nan") if now and change.nan else loss).backward()
            if now and change.poke != 1 and middle.weight.grad is not None:
                middle.weight.grad.mul_(change.poke)
            optimizer.step()
    return folder


RUNS: dict[str, Callable[[Path], Path]] = {
    "usual": lambda folder: train(folder),
    "seed": lambda folder: train(folder, seed=7),
    "rate": lambda folder: train(folder, change=Change(80, rate=30)),
    "order": lambda folder: train(folder, change=Change(60, order=5)),
    "fault": lambda folder: train(folder, change=Change(70, poke=1000.0)),
    "weights": lambda folder: train(folder, change=Change(50, reload=0.5)),
    "nan": lambda folder: train(folder, change=Change(90, nan=True)),
    "seed and rate": lambda folder: train(folder, seed=7, change=Change(1, rate=0.05)),
    "short": lambda folder: train(folder, steps=40, decay=0.1),
}


DATA = Path(__file__).parent / "data"
"""Their recordings: `python tests/compare/pairs.py` makes them again."""


def main() -> None:
    """Train all of them and write their recordings."""
    import tempfile

    from tests.cases import save_case

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in RUNS.items():
            save_case(name, stabkit.load(make(Path(folder) / name)), DATA)


if __name__ == "__main__":
    main()
