"""Builds the optional C extension; all metadata live in setup.cfg, which cannot declare extensions.

Without a compiler the installation still succeeds and `stabkit.hooks.statistics` uses its reference in torch.
"""

import os
import sys
import sysconfig

from setuptools import Extension, setup

# One wheel for CPython 3.10 and newer; builds without the GIL have no stable ABI.
stable_abi = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

# Square roots vectorise only without errno, sums only where the source asks for it (`omp simd`); no -ffast-math, which
# breaks tests for NaN, and no contraction, so that every processor gets the same sums.
unix_flags = ["-O3", "-g0", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "stabkit.hooks.statistics._one_pass",
            ["hooks/statistics/_one_pass.c"],
            depends=["hooks/statistics/_sums.h"],
            define_macros=[("Py_LIMITED_API", "0x030A0000")] if stable_abi else [],
            extra_compile_args=[] if os.name == "nt" else unix_flags,
            extra_link_args=[] if os.name == "nt" else ["-pthread"],
            py_limited_api=stable_abi,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable_abi else {},
)
