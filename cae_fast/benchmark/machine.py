# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on: processor, threads, versions."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from ..environment import info, package_version

_CPU_FILE = Path("/proc/cpuinfo")
#: Packages whose versions belong to a figure.
PACKAGES = {
    "NumPy": "numpy",
    "PyTorch": "torch",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
}


def cpu_name(path: Path = _CPU_FILE) -> str:
    """The processor's name as the kernel gives it, else the architecture's."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2] for line in text.splitlines() if line.startswith("model name"))
    return next((name.strip() for name in names), platform.machine())


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux only
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def describe(threads: int) -> dict[str, Any]:
    """Processor, threads, instruction set and versions, ready for JSON; None: not installed."""
    facts = info()
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "isa": facts["cpu"]["isa"],
        "versions": {
            "cae_fast": facts["version"],
            "Python": facts["python"],
            **{label: package_version(name) for label, name in PACKAGES.items()},
        },
    }
