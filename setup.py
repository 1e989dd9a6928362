# SPDX-License-Identifier: Apache-2.0
"""Builds the extension by CMake and Ninja; everything else is in pyproject.toml.

Environment: CAE_CMAKE_ARGS is passed to CMake as it is (for example ``-DCAE_CUDA=OFF``);
CMAKE_BUILD_PARALLEL_LEVEL bounds the number of jobs.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_tool(name: str) -> str:
    """Path of a build tool: beside the interpreter first, where a build environment has it."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise SystemExit(f"{name} is needed to build cae_fast: pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Runs CMake where setuptools would run the compiler."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = find_tool("cmake")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-Upybind11_DIR",
            *shlex.split(os.environ.get("CAE_CMAKE_ARGS", "")),
        ]
        prefix = str(target.parent.parent)
        for command in (
            configure,
            [cmake, "--build", str(build), "--parallel", jobs, "--target", "_C"],
            [cmake, "--install", str(build), "--component", "module", "--prefix", prefix],
        ):
            subprocess.run(command, check=True)


setup(
    ext_modules=[Extension("cae_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
