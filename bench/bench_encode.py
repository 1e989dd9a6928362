# SPDX-License-Identifier: Apache-2.0
"""Both encoders: native engine beside PyTorch eager."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import cae_fast as cf
from cae_fast.backends.native import NativeBackend
from cae_fast.testing import FLOAT32_TOLERANCE, random_images, relative_error


@pytest.mark.benchmark(group="encode")
@pytest.mark.parametrize("batch", [1, 4])
def bench_encode(model: cf.CAE, compare: Callable[..., None], batch: int) -> None:
    engine = NativeBackend(model, max_batch=16)
    images = random_images(model.config, batch)
    module = model.module().eval()

    def eager() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return module.encode(torch.from_numpy(images))

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return engine.encode(images)

    for value, expected in zip(ours(), eager(), strict=True):
        assert relative_error(value, expected.numpy()) < FLOAT32_TOLERANCE
    compare(ours, eager)
