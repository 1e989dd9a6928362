# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: the only module that imports ``cae_fast._C``."""

from __future__ import annotations

from .errors import ExtensionMissing

try:
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
    "lerp_codes",
    "path_codes",
    "set_num_threads",
]
