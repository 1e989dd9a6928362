# SPDX-License-Identifier: Apache-2.0
"""Toy models, input makers and the table of tolerances, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .model import CAE, CAEConfig

#: Largest relative error (norm of the error / norm of the float64 value) of images and of
#: difference images (the latter
#: divided by the norm of the image), by backend. float32 rounding through about 30 convolutions
#: stays below 1e-5; fp16
#: operands give 1e-3 and bf16 8e-3 on the reference network.
TOLERANCE = {
    "cpu": 1e-5,
    "torch": 1e-5,
    "cuda-fp16": 3e-3,
    "tensorrt-fp16": 3e-3,
    "cuda-bf16": 2e-2,
}
#: The same against values that were themselves computed in float32 by another program.
FLOAT32_TOLERANCE = 2e-5


def relative_error(value: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Norm of the error divided by the norm of the expected value, in float64."""
    exact = np.asarray(expected, dtype=np.float64)
    error = np.asarray(value, dtype=np.float64) - exact
    return float(np.linalg.norm(error) / max(float(np.linalg.norm(exact)), 1e-300))


def toy_model(*, seed: int = 0, **overrides: Any) -> CAE:
    """A small random model: 16 x 16 grey images, width 4, one block, three classes by default."""
    fields: dict[str, Any] = {
        "image_size": 16,
        "in_channels": 1,
        "channels": 4,
        "num_blocks": 1,
        "code_dim": 4,
        "num_classes": 3,
        "modulation_width": 16,
    }
    return CAE.random(CAEConfig(**(fields | overrides)), seed=seed)


def random_images(config: CAEConfig, count: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Smooth random images [count, C, S, S] in [-1, 1]."""
    generator = np.random.default_rng(seed)
    side = config.image_size
    coarse = generator.uniform(-1, 1, (count, config.in_channels, side // 4, side // 4))
    smooth = np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3)
    noise = generator.normal(0, 0.05, smooth.shape)
    return np.clip(smooth + noise, -1, 1).astype(np.float32)


def toy_classifier(
    config: CAEConfig, *, seed: int = 0, gain: float = 4.0
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """A linear classifier: images [N, C, S, S] -> logits [N, K], rows independent of the batch."""
    generator = np.random.default_rng(seed)
    size = int(np.prod(config.image_shape))
    weight = generator.standard_normal((size, config.num_classes)) / np.sqrt(size) * gain

    def classify(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        flat = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
        rows = [row @ weight for row in flat]
        return np.array(rows, dtype=np.float32).reshape(len(images), config.num_classes)

    return classify
