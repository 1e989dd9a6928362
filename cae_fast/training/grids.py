# SPDX-License-Identifier: Apache-2.0
"""Sample grids: pictures in which a person sees how far training is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files import atomic_write
from ..images import to_uint8

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
