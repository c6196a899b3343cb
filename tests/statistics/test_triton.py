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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]

COMPILE = """
import sys
from triton import compile
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stabkit.hooks.statistics import triton_after, triton_bits, triton_kernel

TYPES = {"table": "*i64", "numbers": "*fp64", "chunks": "*i32", "partials": "*fp64", "kept": "*i16"}
SIZES = {"CHUNK": 32768, "T": 256, "V": 8, "ROW": 24, "COLUMNS": 19, "START": 0, "WIDTH": 19, "AT_ONCE": 128, "LANES": 32}
SIZES |= {"ELEMENTS": 4096, "STEP": True, "ALIGNED": True, "P": tl.bfloat16, "G": tl.bfloat16, "M": tl.float32, "S": tl.float32}
SIZES |= {"BITS": tl.int16}
kernels = [triton_kernel.before_chunks, triton_after.after_chunks, triton_kernel.merge_chunks]
for kernel in [*kernels, triton_bits.keep_elements, triton_bits.compare_elements]:
    names = kernel.arg_names
    types = {name: "constexpr" if name in SIZES else TYPES.get(name, "*fp64") for name in names}
    fixed = {(names.index(name),): SIZES[name] for name in names if name in SIZES}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in SIZES}
    source = ASTSource(kernel, types, constexprs=fixed, attrs=aligned)
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8, "maxnreg": 128})
    wide = "ld.global.v4.b32" in made.asm["ptx"]
    assert wide or kernel not in kernels[:2], f"{kernel.__name__} does not read 16 bytes at a time"
"""


@pytest.mark.parametrize("capability", [75, 90, 100])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(capability: int, tmp_path: Path) -> None:
    """Down to machine code, and where tensors are aligned they are read 16 bytes at a time."""
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    own = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=os.environ | own | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_kernels_agree_with_the_oracle(tmp_path: Path) -> None:
    own = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    tests = Path(__file__).with_name("kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'kernels'}", str(tests)],
        env=os.environ | own | {"OMP_NUM_THREADS": "1"}, cwd=tests.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
