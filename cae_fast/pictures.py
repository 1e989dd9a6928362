# SPDX-License-Identifier: Apache-2.0
"""Model images as PNG files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .arrays import Float32
from .images import to_uint8


def png_bytes(image: Float32, *, longest_side: int | None = None) -> bytes:
    """One image as a PNG.

    Args:
        image: [C, H, W] in [-1, 1], C 1 (grey), 3 (RGB) or 4 (RGBA); 2 channels show the first. NaN
            becomes black.
        longest_side: Shrink to this many pixels; smaller images stay as they are.

    Returns:
        The bytes of the file.
    """
    shown = np.nan_to_num(image[:1] if image.shape[0] == 2 else image, nan=-1.0)
    pixels = to_uint8(shown[None])[0]
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if longest_side is not None:
        picture.thumbnail((longest_side, longest_side))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
