"""A training whose process ends in some unusual way; tells a checksum of its weights first. Run in a process of its own."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import zlib
from typing import Any

import torch
from torch import nn

import stabkit
from tests.breaking.training import bits

STEPS = 30


def main(way: str, logdir: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(steps: int = STEPS) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def tell() -> None:
        os.write(1, f"{zlib.crc32(repr(bits(model.state_dict())).encode())}\n".encode())

    def watch(**options: Any) -> Any:
        return stabkit.watch(model, optimizer, logdir, **options)

    if way == "bare":
        train(), tell()
    elif way == "never left":
        watching = watch()
        watching.__enter__()
        globals()["kept"] = watching
        train(), tell()
    elif way == "never left, with live verdicts":
        watching = watch(on_finding=lambda finding: None)
        watching.__enter__()
        globals()["kept"] = watching
        train(), tell()
    elif way == "dropped":
        watch().__enter__()
        train(), tell()
    elif way == "sys.exit(3)":
        with watch():
            train(), tell()
            sys.exit(3)
    elif way == "os._exit(4)":
        with watch():
            train(), tell()
            os._exit(4)
    elif way == "an exception":
        with watch():
            train(), tell()
            raise ValueError("the user's own")
    elif way == "left at exit":
        watching = watch()
        watching.__enter__()
        atexit.register(watching.__exit__, None, None, None)
        atexit.register(lambda: (train(STEPS // 2), tell()))
        train(STEPS // 2)
    elif way == "a daemon thread":

        def work() -> None:
            with watch():
                train(), tell()
                while True:
                    time.sleep(1)

        threading.Thread(target=work, daemon=True).start()
        time.sleep(2)
    elif way == "a callback that hangs":
        with watch(on_finding=lambda finding: time.sleep(60)):
            train(), tell()
            model[0].weight.data.fill_(float("nan"))
            train(8)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
