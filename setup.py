"""Builds the optional C extension; all metadata live in setup.cfg, which cannot declare extensions.

Without a compiler the installation still succeeds and `stabkit.hooks.statistics` uses its reference in torch. The wheel is
then one for any platform, and says so.
"""

import os
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# One wheel for CPython 3.10 and newer; builds without the GIL have no stable ABI.
stable_abi = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

# Square roots vectorise only without errno, sums only where the source asks for it (`omp simd`); no -ffast-math, which
# breaks tests for NaN, and no contraction, so that every processor gets the same sums.
unix_flags = ["-O3", "-g0", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


class BuildOptional(build_ext):
    """Forgets the extensions that could not be built, so that nothing after it counts on them."""

    def run(self) -> None:
        """Build, then look at what is there."""
        super().run()
        built = [extension for extension in self.extensions if os.path.exists(self.get_ext_fullpath(extension.name))]
        self.distribution.ext_modules = built


class HonestWheel(bdist_wheel):
    """Named after what is in it: setuptools would name it before it knows whether the extension could be built."""

    def run(self) -> None:
        """Build first, then decide."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setup(
    ext_modules=[
        Extension(
            "stabkit.hooks.statistics._one_pass",
            ["hooks/statistics/_one_pass.c"],
            depends=["hooks/statistics/_sums.h", "hooks/statistics/_tensors.h"],
            define_macros=[("Py_LIMITED_API", "0x030A0000")] if stable_abi else [],
            extra_compile_args=[] if os.name == "nt" else unix_flags,
            extra_link_args=[] if os.name == "nt" else ["-pthread"],
            py_limited_api=stable_abi,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildOptional, "bdist_wheel": HonestWheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable_abi else {},
)
