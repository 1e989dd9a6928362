# SPDX-License-Identifier: Apache-2.0
"""Sample grids: pictures in which a person sees how far training is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..files import atomic_write
from ..images import to_uint8
from .losses import partner

if TYPE_CHECKING:
    from ..networks import CAEModule

_IMAGES = 8
_GAP = 2
_SMALLEST_SIDE = 64


def write_grid(path: Path, rows: Sequence[NDArray[np.float32]]) -> None:
    """Writes rows of images as one PNG.

    Args:
        path: File to write, atomically.
        rows: Arrays [M, C, S, S] in [-1, 1], all of one shape; small images are enlarged.

    Raises:
        OSError: The file system refused.
    """
    tiles = [to_uint8(row) for row in rows]
    count, side, _, channels = tiles[0].shape
    step = side + _GAP
    sheet = np.full((len(rows) * step - _GAP, count * step - _GAP, channels), 255, dtype=np.uint8)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet[y * step : y * step + side, x * step : x * step + side] = tile
    shown = sheet[..., 0] if channels in (1, 2) else sheet[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(shown))
    scale = -(-_SMALLEST_SIDE // side)
    if scale > 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


@torch.no_grad()
def write_swaps(path: Path, model: CAEModule, images: Tensor, labels: NDArray[np.int64]) -> None:
    """Writes original, reconstruction, donor and swap of a few of some images.

    Args:
        path: File to write, atomically.
        model: The networks, in eval mode.
        images: [N, C, S, S], float32, on the model's device.
        labels: Their classes [N].

    Raises:
        OSError: The file system refused.
    """
    chosen = spread_over_classes(labels, min(_IMAGES, len(images)))
    shown = images[torch.from_numpy(chosen)]
    individual, codes = model.encode(shown)
    own, swapped = model.decode(individual, codes), model.decode(individual, partner(codes))
    write_grid(path, [row.float().cpu().numpy() for row in (shown, own, partner(shown), swapped)])


def spread_over_classes(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices such that each image and the one half the list on differ in class where possible."""
    classes = np.unique(labels)
    half = max(1, count // 2)
    members = {int(k): np.flatnonzero(labels == k) for k in classes}
    chosen = []
    for side in (0, 1):
        for i in range(half):
            of = members[int(classes[(i + side) % len(classes)])]
            chosen.append(of[(i // len(classes) + side) % len(of)])
    return np.asarray(chosen, dtype=np.int64)
