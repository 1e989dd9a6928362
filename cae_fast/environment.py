# SPDX-License-Identifier: Apache-2.0
"""What this machine and this installation offer, found without importing anything heavy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from pathlib import Path
from typing import Any

# CUDA 13 needs this branch of the NVIDIA driver or a later one.
DRIVER_NEEDED = 580
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_OPTIONAL = (
    "torch",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "matplotlib",
    "scikit-learn",
    "tensorboard",
)
_TENSORRT_FLAVOURS = ("tensorrt", "tensorrt_rtx")


def info() -> dict[str, Any]:
    """Versions, processor, CUDA and TensorRT of this installation.

    Returns:
        Plain values, ready for JSON, under the keys

        - `version`, `python`, `platform`;
        - `packages`: version of each package used, None where it is not installed;
        - `extension`: `built`, and `reason` where it cannot be loaded;
        - `cpu`: `isa` in use, `isas` that this machine can run, `threads`;
        - `cuda`: `built`, `reason` (why not), `compiler`, `archs`, `runtime`, `driver_needed`,
          `driver_found`, `driver_ok`, `devices` (each with `usable`: new enough for backend
          "cuda"), `error`, `emulator` (the kernels' emulator, device "emu", is built);
        - `tensorrt`: flavours found, by name: version.
    """
    packages = {
        name: package_version(name)
        for name in ("numpy", "Pillow", "safetensors", "typer", "rich", *_OPTIONAL)
    }
    extension, cpu, cuda = _native()
    tensorrt = {
        name: package_version(name) or "unknown version"
        for name in _TENSORRT_FLAVOURS
        if importlib.util.find_spec(name) is not None
    }
    return {
        "version": package_version("cae-fast"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "extension": extension,
        "cpu": cpu,
        "cuda": cuda,
        "tensorrt": tensorrt,
    }


def package_version(name: str) -> str | None:
    """Version of an installed package, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver_version(path: Path = _DRIVER_FILE) -> str | None:
    """Version of the NVIDIA kernel driver, such as "580.65.06"; None without one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module\b.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found.group(1) if found else None


def _native() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The parts that the extension knows: itself, the processor, CUDA."""
    found = driver_version()
    driver = {
        "emulator": importlib.util.find_spec("cae_fast._C_emu") is not None,
        "driver_needed": str(DRIVER_NEEDED),
        "driver_found": found,
        "driver_ok": found is not None and int(found.split(".")[0]) >= DRIVER_NEEDED,
    }
    try:
        from . import _backend
        from .backends.cuda import LEAST_CAPABILITY

        cpu = {
            "isa": _backend.cpu_isa(),
            "isas": list(_backend.cpu_isas()),
            "threads": _backend.get_num_threads(),
        }
        status = dict(_backend.cuda_status())
    except (ImportError, ValueError, RuntimeError) as error:
        reason = str(error)
        return (
            {"built": False, "reason": reason},
            {"isa": None, "isas": [], "threads": None},
            {"built": False, "reason": reason, "devices": [], **driver},
        )
    status["devices"] = [
        {**device, "usable": tuple(device["capability"]) >= LEAST_CAPABILITY}
        for device in status["devices"]
    ]
    return {"built": True, "reason": ""}, cpu, {**status, **driver}
