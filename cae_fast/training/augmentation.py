# SPDX-License-Identifier: Apache-2.0
"""Strong augmentation for classifiers: what a picture was taken with must not tell its class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TURN = 0.2  # radians, either way
_ZOOM, _STRETCH = 0.2, 0.12  # natural logarithms, either way
_SHIFT = 0.15  # of half the side, either way
_GAMMA = 0.5  # natural logarithm, either way
_CONTRAST = (-0.4, 0.3)  # natural logarithm
_BRIGHTNESS = 0.15  # of the range, either way


def strongly_augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Turns, scales, shifts, mirrors, blurs each image at random, and changes its grey levels.

    Turned by at most 0.2 radians, scaled by 0.8 to 1.2, shifted by at most 7.5 % of the side
    (borders are repeated), mirrored left to right; then gamma, contrast and brightness, one for all
    channels, and a mixture with the image blurred over 3 x 3 pixels.

    Args:
        images: [N, C, S, S], float32 in [-1, 1]; not changed.
        rng: Draws the same number of values for any content.

    Returns:
        The same shape, in [-1, 1].
    """
    count = len(images)

    def drawn(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    turn, zoom = drawn(-_TURN, _TURN), torch.exp(drawn(-_ZOOM, _ZOOM))
    stretch = torch.exp(drawn(-_STRETCH, _STRETCH))
    mirror = torch.where(drawn(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    right, down = drawn(-_SHIFT, _SHIFT), drawn(-_SHIFT, _SHIFT)
    across = torch.stack([cos * stretch * mirror, -sin / stretch, right], dim=1)
    along = torch.stack([sin * stretch * mirror, cos / stretch, down], dim=1)
    grid = F.affine_grid(
        torch.stack([across, along], dim=1), list(images.shape), align_corners=False
    )
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    level = ((moved + 1) / 2).clamp(0, 1) ** each(torch.exp(drawn(-_GAMMA, _GAMMA)))
    level = (level - 0.5) * each(torch.exp(drawn(*_CONTRAST))) + 0.5
    level = level + each(drawn(-_BRIGHTNESS, _BRIGHTNESS))
    blurred = F.avg_pool2d(F.pad(level, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = each(drawn(0, 1))
    return (level * (1 - share) + blurred * share).clamp(0, 1) * 2 - 1
