# SPDX-License-Identifier: Apache-2.0
"""Whether a GPU computes what the CPU computes: asked before "auto" takes it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..errors import CAEError
from ..model import CAE, CAEConfig
from .cuda import CudaBackend
from .native import NativeBackend

# Half-precision operands err by about 1e-3 on so small a network; a wrong kernel by about 1.
_LIMIT = 2e-2


@lru_cache(maxsize=16)
def why_wrong(index: int | None) -> str:
    """How a GPU fails to encode and decode a small network as the CPU does; "" where it does not.

    Asked once per process and GPU; takes a fraction of a second.

    Args:
        index: Of the GPU; None is the emulator.
    """
    config = CAEConfig(image_size=32, channels=16, num_blocks=2, num_classes=2)
    model = CAE.random(config, seed=0)
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (2, *config.image_shape)).astype(np.float32)
    rows = np.array([0, 1, 1], dtype=np.int32)
    try:
        native = NativeBackend(model, max_batch=2)
        individual, codes = native.encode(images)
        expected = (individual, codes, native.decode(individual, codes[rows], rows))
        backend = CudaBackend(model, index=index, max_batch=2)
        device_individual, device_codes = backend.encode(images)
        found = (
            device_individual.numpy(),
            device_codes,
            backend.decode(individual, codes[rows], rows).numpy(),
        )
    except (RuntimeError, CAEError, MemoryError) as error:
        return f"a small network cannot be run: {str(error).splitlines()[0]}"
    names = ("individual codes", "class codes", "images")
    for what, exact, value in zip(names, expected, found, strict=True):
        distance = float(np.linalg.norm(value - exact) / np.linalg.norm(exact))
        if not distance < _LIMIT:
            return f"{what} of a small network are off by {distance:.2g} of their norm"
    return ""
