"""Trains on a disk that stalls at times; prints what it took and what came out. Run in a process of its own: see slow.c."""

from __future__ import annotations

import json
import sys
import time
import zlib
from pathlib import Path

from tests.breaking.training import train


def main() -> None:
    """argv: the log directory, the switch, a JSON object of step -> seconds that a write takes after it."""
    logdir, switch, plan = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    took, last = [], [time.monotonic()]

    def between(done: int) -> None:
        took.append(time.monotonic() - last[0])
        if str(done) in plan:
            switch.write_text(str(plan[str(done)]))
        last[0] = time.monotonic()

    outcome = train(logdir, steps=len(plan) and max(map(int, plan)) + 20, between=between)
    bare = train(steps=max(map(int, plan)) + 20)
    print(json.dumps({"same": outcome.bits == bare.bits, "warned": outcome.warned, "took": took,
                      "crc": zlib.crc32(repr(outcome.bits).encode())}))  # fmt: skip


if __name__ == "__main__":
    main()
