# SPDX-License-Identifier: Apache-2.0
"""Step: the machine. GPU, driver, clocks, compiler, torch."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

from record import NO_GPU, Recorder, first_line

_QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.limit,temperature.gpu,persistence_mode"
)


def gpus() -> list[dict[str, Any]]:
    """The GPUs that the driver shows: name and capability. Needs no torch and no CUDA run-time."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        name = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(name, 128, index)
        numbers = []
        for attribute in (75, 76, 16):  # capability, multiprocessors
            value = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
            numbers.append(value.value)
        found.append(
            {
                "name": name.value.decode(),
                "capability": numbers[:2],
                "multiprocessors": numbers[2],
            }
        )
    return found


def output_of(*command: str) -> str:
    """What a command prints, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return (done.stdout or done.stderr).strip()


def main() -> None:
    """Writes the facts; ends with NO_GPU where there is none."""
    found = Recorder()
    listed = gpus()
    found.put("gpus", listed)
    found.put("python", platform.python_version())
    found.put("cores", len(os.sched_getaffinity(0)))
    compiler = output_of("nvcc", "--version").splitlines()
    found.put("nvcc", next((line for line in compiler if "release" in line), "not found"))
    tools = ("ncu", "compute-sanitizer", "cmake", "ninja", "g++")
    found.put("tools", {name: shutil.which(name) for name in tools})
    if not listed:
        found.say("no GPU: the driver shows none")
        sys.exit(NO_GPU)
    values = output_of("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader")
    first = values.splitlines()[0].split(", ") if values else []
    found.put("smi", dict(zip(_QUERY.split(","), first, strict=False)))
    torch_is = "no torch"
    try:
        import torch

        torch_is = f"torch {torch.__version__}"
        if not torch.cuda.is_available():
            torch_is += " (sees no GPU)"
    except ImportError:
        pass
    found.put("torch", torch_is)
    major, minor = listed[0]["capability"]
    smi = found.data["smi"]
    found.say(
        f"{listed[0]['name']}, sm_{major}{minor}, {listed[0]['multiprocessors']} SMs, "
        f"driver {smi.get('driver_version', '?')}, SM clock {smi.get('clocks.sm', '?')} of "
        f"{smi.get('clocks.max.sm', '?')}, {found.data['nvcc'].split(',')[-1].strip()}, {torch_is}"
    )


if __name__ == "__main__":
    main()
