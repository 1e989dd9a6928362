# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: the only module that imports ``cae_fast._C`` and ``cae_fast._C_emu``."""

from __future__ import annotations

from types import ModuleType

from .errors import ExtensionMissing

try:
    from . import _C
    from ._C import (
        DecodeSession,
        Engine,
        FlipSearch,
        build_config,
        check_cuda_device,
        cpu_isa,
        cpu_isas,
        cuda_status,
        difference_saliency,
        get_num_threads,
        lerp_codes,
        path_codes,
        set_num_threads,
    )
except ImportError as error:
    raise ExtensionMissing(
        f"the compiled extension cae_fast._C cannot be imported ({error}); build it with "
        "`pip install .` in the source tree (needs a C++17 compiler and Python's headers), for the "
        "interpreter that imports it"
    ) from error

__all__ = [
    "DecodeSession",
    "Engine",
    "FlipSearch",
    "build_config",
    "check_cuda_device",
    "cpu_isa",
    "cpu_isas",
    "cuda_status",
    "difference_saliency",
    "get_num_threads",
    "gpu_module",
    "lerp_codes",
    "path_codes",
    "set_num_threads",
]


def gpu_module(*, emulated: bool) -> ModuleType:
    """The module that has `GpuEngine`, `GpuSession` and `DeviceArray`, as `_C_emu.pyi` says.

    Args:
        emulated: The module whose kernels run in the emulator, on the CPU.

    Raises:
        ExtensionMissing: The extension was built without CUDA, or the emulator is not built.
    """
    if not emulated:
        if not hasattr(_C, "GpuEngine"):
            reason = cuda_status()["reason"]
            raise ExtensionMissing(f"the extension was built without CUDA ({reason})")
        return _C
    try:
        from . import _C_emu
    except ImportError as error:
        raise ExtensionMissing(
            f"the emulator of the CUDA kernels, cae_fast._C_emu, cannot be imported ({error}); it "
            "is for tests and not part of an installation: `make test` builds it in the source tree"
        ) from error
    return _C_emu
