"""The Triton kernels, in a process of their own: whether Triton compiles or interprets is decided when it is first imported.

The interpreter computes with numpy what the kernels say, program by program. It shows that the sums are right;
`benchmarks/on_cuda.py` shows how fast they are, on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_agree_with_the_oracle(tmp_path: Path) -> None:
    own = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    tests = Path(__file__).with_name("kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'kernels'}", str(tests)],
        env=os.environ | own | {"OMP_NUM_THREADS": "1"}, cwd=tests.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
