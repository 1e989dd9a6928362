# SPDX-License-Identifier: Apache-2.0
"""Class association embedding for Quantus's metrics (extra `quantus`, for Quantus itself)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..explainer import Explainer
from .class_scores import explain_scores, rebound


def explain_func(explainer: Explainer, **options: Any) -> Callable[..., npt.NDArray[np.float32]]:
    """A function as Quantus's metrics take it: `metric(..., explain_func=explain_func(explainer))`.

    It is called with `model=, inputs=, targets=` and explains the model it is given, so that
    metrics that randomise a model see that. Maps are normalised image by image; an image with
    nothing to show gets a ramp that knows nothing, since Quantus refuses constant maps.

    Args:
        explainer: Whose model, bank and backend are used.
        **options: Of `Explainer.explain`.

    Returns:
        Function of (model, inputs, targets) -> float32 [N, 1, S, S] in [0, 1]. `inputs` are images
        [N, C, S, S] in [-1, 1] (clipped), `targets` classes [N] or one.
    """

    def explain(
        model: Any = None, inputs: Any = None, targets: Any = None, **ignored: Any
    ) -> npt.NDArray[np.float32]:
        images = np.asarray(inputs, dtype=np.float32)
        if images.ndim != 4:
            raise ValueError(f"inputs must be images [N, C, S, S], got {list(images.shape)}")
        classes = None
        if targets is not None:
            flat = np.asarray(targets).reshape(-1).astype(np.int64)
            classes = np.broadcast_to(flat, len(images))
        found, _ = explain_scores(rebound(explainer, model), images, classes, None, **options)
        maps = np.nan_to_num(np.asarray(found.saliency, dtype=np.float32))
        flat_maps = np.ptp(maps, axis=(1, 2)) == 0
        side = maps.shape[1]
        maps[flat_maps] = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
        return maps[:, None]

    return explain
