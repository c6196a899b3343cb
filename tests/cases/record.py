"""`python -m tests.cases.record [NAME...]`: trains the cases again and writes their recordings."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.cases import save_case
from tests.cases.recipes import CASES, run_case

if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            run = run_case(CASES[name], Path(folder) / name)
            save_case(name, run)
            losses = run.series("loss").values
            print(name, "loss", " ".join(f"{x:.2f}" for x in losses[:: max(1, len(losses) // 12)]), flush=True)
