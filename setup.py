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
# Environment that decides what CMake finds.
READ = [
    *("PATH", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_PREFIX_PATH"),
    *("CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS", "CUDAToolkit_ROOT", "CUDA_PATH", "CUDA_HOME"),
]


def find_tool(name: str) -> str:
    """Path of a build tool: beside the interpreter first, where a build environment has it."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise SystemExit(f"{name} is needed to build cae_fast: pip install {name}")
    return found


def usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux only
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


# The emulator of the CUDA kernels is for tests: built only where CMake is told to.
EMULATED = "-DCAE_EMU=ON" in shlex.split(os.environ.get("CAE_CMAKE_ARGS", ""))
NAMES = ["cae_fast._C", *(["cae_fast._C_emu"] if EMULATED else [])]


class CMakeBuild(build_ext):
    """Runs CMake where setuptools would run the compiler."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name != NAMES[0]:
            return  # built and installed with the first
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = find_tool("cmake")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(usable_cores())
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-Upybind11_DIR",
            *shlex.split(os.environ.get("CAE_CMAKE_ARGS", "")),
        ]
        # What a configuration found stays in CMake's cache, so another one starts afresh.
        stamp = build / "configured.txt"
        wanted = "\n".join([*configure, *(f"{name}={os.environ.get(name, '')}" for name in READ)])
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
            stamp.unlink(missing_ok=True)
            configure.append("--fresh")
        prefix = str(target.parent.parent)
        subprocess.run(configure, check=True)
        stamp.write_text(wanted, encoding="utf-8")
        for command in (
            [cmake, "--build", str(build), "--parallel", jobs, "--target", "cae_modules"],
            [cmake, "--install", str(build), "--component", "module", "--prefix", prefix],
        ):
            subprocess.run(command, check=True)


setup(
    ext_modules=[Extension(name, sources=[]) for name in NAMES],
    cmdclass={"build_ext": CMakeBuild},
)
