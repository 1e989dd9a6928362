# SPDX-License-Identifier: Apache-2.0
"""Augmentation of batches of training images, all of it drawn from a generator that is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .options import Augment

_TURN = 0.2  # radians, either way
_ZOOM, _STRETCH = 0.2, 0.12  # natural logarithms, either way
_SHIFT = 0.15  # of half the side, either way
_GAMMA = 0.5  # natural logarithm, either way
_CONTRAST = (-0.4, 0.3)  # natural logarithm
_BRIGHTNESS = 0.15  # of the range, either way


def augmented(images: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Varies each image at random as a run asks for.

    Args:
        images: [N, C, S, S], float32 in [-1, 1]; not changed.
        augment: "none"; "flip" mirrors left to right; "dihedral" mirrors and turns by right
            angles; "strong" is `strongly_augmented`.
        rng: Draws the same number of values for any content.

    Returns:
        The same shape.
    """
    if augment == "none":
        return images
    if augment == "strong":
        return strongly_augmented(images, rng)
    kinds = rng.integers(0, 2 if augment == "flip" else 8, size=len(images))
    result = torch.empty_like(images)
    for kind in range(8):
        chosen = torch.from_numpy(np.flatnonzero(kinds == kind))
        if len(chosen):
            part = images[chosen]
            part = part.flip(3) if kind & 1 else part
            result[chosen] = torch.rot90(part, kind >> 1, (2, 3))
    return result


def varied(images: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """As `augmented`, and shifted by up to a sixteenth of the side, which "strong" does itself."""
    images = augmented(images, augment, rng)
    return images if augment == "strong" else shifted(images, images.shape[3] // 16, rng)


def shifted(images: Tensor, reach: int, rng: np.random.Generator) -> Tensor:
    """Shifts each image by up to `reach` pixels both ways, repeating the border."""
    if reach < 1:
        return images
    side = images.shape[3]
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    offsets = rng.integers(0, 2 * reach + 1, size=(len(images), 2))
    return torch.stack(
        [row[:, y : y + side, x : x + side] for row, (y, x) in zip(padded, offsets, strict=True)]
    )


def strongly_augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Turns, scales, shifts, mirrors, blurs each image at random, and changes its grey levels.

    What a picture was taken with then does not tell its class.
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
