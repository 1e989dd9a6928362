# SPDX-License-Identifier: Apache-2.0
"""Decoding path points of one image: native engine beside PyTorch eager."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import cae_fast as cf
from cae_fast.backends.native import NativeBackend
from cae_fast.testing import FLOAT32_TOLERANCE, random_images, relative_error


@pytest.mark.benchmark(group="decode")
@pytest.mark.parametrize("points", [1, 4])
def bench_decode_path(model: cf.CAE, compare: Callable[..., None], points: int) -> None:
    engine = NativeBackend(model, max_batch=16)
    individual, class_code = engine.encode(random_images(model.config, 1))
    codes = class_code + np.linspace(0, 1, points, dtype=np.float32)[:, None]
    index = np.zeros(points, dtype=np.int32)
    module = model.module().eval()
    repeated = torch.from_numpy(individual).expand(points, -1, -1, -1)

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return module.decode(repeated, torch.from_numpy(codes))

    def ours() -> np.ndarray:
        return engine.decode(individual, codes, index)

    assert relative_error(ours(), eager().numpy()) < FLOAT32_TOLERANCE
    compare(ours, eager)
