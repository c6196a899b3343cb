"""A training is ended by signals at random moments; what it had finished is in the log.

    python -m benchmarks.kills [--trials 200] [--seed 0] [--write]

Each trial trains in a process of its own and is hit by SIGKILL, SIGTERM, SIGINT or SIGSTOP (then SIGCONT and SIGKILL, or
SIGKILL while it is stopped) after a random number of steps and microseconds. The training tells each step through a pipe as
soon as `optimizer.step()` is over. Steps lost are those it had told that the log does not have; the target is none.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import stabkit
import stabkit.dashboard.writer
import stabkit.watch  # here, once: each child would spend seconds on it
from benchmarks.heading import heading

RESULTS = Path(__file__).parent / "results" / "KILLS.md"
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP, SIGCONT, SIGKILL", "SIGSTOP, SIGKILL")


@dataclass
class Trial:
    """What came of one.

    Attributes:
        kind: How it was ended.
        told: The last step that the training said it had finished.
        lost: How many of the steps up to it are not in the log.
        wrong: What else is wrong, "" where nothing is.
    """

    kind: str
    told: int
    lost: int
    wrong: str


def train(logdir: Path, pipe: int) -> None:
    """In a forked child: train until ended, telling each step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with stabkit.watch(model, optimizer, logdir):
            for step in range(1, 100_000):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                os.write(pipe, step.to_bytes(4, "little"))


def trial(folder: Path, chance: random.Random) -> Trial:
    """One training, ended at a random moment."""
    kind, steps, delay = chance.choice(KINDS), chance.randint(1, 40), chance.random() / 200
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - KeyboardInterrupt's traceback
        try:
            train(folder, writing)
        finally:
            os._exit(0)
    os.close(writing)
    told = b""
    while len(told) < 4 * steps and (more := os.read(reading, 4096)):
        told += more
    time.sleep(delay)
    for name in kind.split(", "):
        os.kill(child, getattr(signal, name))
        time.sleep(0.002 if name == "SIGSTOP" else 0.0)
    while more := os.read(reading, 4096):
        told += more
    os.close(reading)
    os.waitpid(child, 0)
    return check(folder, kind, len(told) // 4)


def check(folder: Path, kind: str, told: int) -> Trial:
    """Hold the log against what the training told."""
    run = stabkit.load(folder)
    have = run.steps.tolist()
    wrong = ""
    if have != list(range(1, len(have) + 1)):
        wrong = f"steps {have}"
    elif not told <= len(have) <= told + 1:
        wrong = f"{len(have)} steps, told {told}"
    elif not set(range(told + 1)) <= set(run.stream.tensor_steps.tolist()):
        wrong = "tensors missing"
    elif any("damaged" in note for note in run.notes):
        wrong = str(run.notes)
    return Trial(kind, told, len(set(range(1, told + 1)) - set(have)), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        trials = []
        for number in range(options.trials):
            trials.append(trial(Path(name) / str(number), chance))
            print(trials[-1], file=sys.stderr, flush=True)
    rows = []
    for kind, count in Counter(trial.kind for trial in trials).items():
        own = [trial for trial in trials if trial.kind == kind]
        bad = sum(bool(t.wrong) for t in own)
        rows.append(f"| {kind} | {count} | {sum(t.told for t in own):,} | {sum(t.lost for t in own)} | {bad} |")
    text = f"""# Ended at random moments

{heading("benchmarks.kills")}

| ended by | trials | steps finished | steps lost | logs that were not exact |
|---|---|---|---|---|
""" + "\n".join(sorted(rows)) + "\n"
    print(text, *(trial for trial in trials if trial.wrong))
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
