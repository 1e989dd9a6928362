# SPDX-License-Identifier: Apache-2.0
"""The packages `tensorrt` and `tensorrt_rtx`, and what differs between them.

Both have the same programming interface. `tensorrt` (for data centres) builds for the GPU that is
there and times kernels on it; `tensorrt_rtx` builds ahead of time for chosen GPUs, and needs none.
Versions 10 and 11 are served: networks are strongly typed, which is all that both have in common.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from .. import _backend
from ..errors import BackendUnavailable, EngineError

FLAVOURS = ("tensorrt", "tensorrt_rtx")
_LEAST_MAJOR = {"tensorrt": 10, "tensorrt_rtx": 1}


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT.

    Attributes:
        name: Of its package.
        version: Of its package: engines are read by the same one only.
        module: The package.
    """

    name: str
    version: str
    module: Any

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not there."""
        return self.name == "tensorrt_rtx"

    @property
    def has_timing_cache(self) -> bool:
        """Whether timings of kernels are worth keeping: none are taken ahead of time."""
        return not self.ahead_of_time

    def targets(self) -> tuple[str, ...]:
        """Architectures that engines can be built for here."""
        if not self.ahead_of_time:
            return present_gpus()[:1]  # CUDA's current device
        names = self.module.ComputeCapability.__members__
        known = [name for name in names if name.startswith("SM") and name[2:].isdecimal()]
        return tuple(f"sm{name[2:]}" for name in sorted(known, key=lambda name: int(name[2:])))

    def network_flags(self) -> int:
        """Of a network whose types are those of its ONNX file."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)  # where it is gone, all networks are

    def set_targets(self, config: Any, gpus: tuple[str, ...]) -> None:
        """Makes a builder configuration build for these architectures.

        Raises:
            EngineError: It will not.
        """
        if not self.ahead_of_time:
            if gpus != self.targets():
                raise EngineError(f"tensorrt builds for the GPU that is there, got {list(gpus)}")
            return
        config.num_compute_capabilities = len(gpus)
        for index, gpu in enumerate(gpus):
            capability = getattr(self.module.ComputeCapability, gpu.upper())
            if not config.set_compute_capability(capability, index):
                raise EngineError(f"{self.name} {self.version} refuses to build for {gpu}")


def present_gpus() -> tuple[str, ...]:
    """Architectures of the GPUs of this machine, by index."""
    return tuple(
        "sm{}{}".format(*device["capability"]) for device in _backend.cuda_status()["devices"]
    )


def find_flavour(name: str | None = None) -> Flavour:
    """An installed TensorRT.

    Args:
        name: "tensorrt" or "tensorrt_rtx"; None takes the first that can build here.

    Raises:
        EngineError: Unknown name.
        BackendUnavailable: It is not installed, too old, or cannot be loaded.
    """
    if name is not None and name not in FLAVOURS:
        raise EngineError(f"flavour must be one of {', '.join(FLAVOURS)}, got {name!r}")
    installed = [
        flavour
        for flavour in FLAVOURS
        if name in (None, flavour) and importlib.util.find_spec(flavour) is not None
    ]
    if not installed:
        wanted = "TensorRT" if name is None else name
        extras = "'cae_fast[tensorrt-rtx]' (builds without a GPU) or 'cae_fast[tensorrt]'"
        if name is not None:
            extras = f"'cae_fast[{name.replace('_', '-')}]'"
        raise BackendUnavailable(f"{wanted} is not installed: pip install {extras}")
    found = [_load(flavour) for flavour in installed]
    return next((flavour for flavour in found if flavour.targets()), found[0])


def _load(name: str) -> Flavour:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # missing libraries surface as OSError, ImportError, RuntimeError
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendUnavailable(f"{name} is installed but cannot be loaded: {line}") from error
    version = str(module.__version__)
    if int(version.split(".")[0]) < _LEAST_MAJOR[name]:
        raise BackendUnavailable(
            f"{name} {version} is too old, {_LEAST_MAJOR[name]} or newer is needed"
        )
    return Flavour(name, version, module)
