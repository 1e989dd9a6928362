# SPDX-License-Identifier: Apache-2.0
"""Pixels and model images as PNG files."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from .arrays import Float32
from .colors import to_rgb
from .images import to_uint8


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """PNG file of uint8 `[H, W]` or `[H, W, 3 or 4]`."""
    return _encoded(Image.fromarray(pixels))


def image_png(image: Float32, *, longest_side: int | None = None) -> bytes:
    """One model image as a PNG file.

    Args:
        image: `[C, H, W]` in [-1, 1], C 1 (grey), 2 (shown as grey, their mean), 3 (RGB) or 4
            (RGBA). Values outside are clipped, NaN is black.
        longest_side: Shrink to this many pixels; smaller images stay as they are.
    """
    pixels = to_rgb(image) if len(image) == 2 else to_uint8(image[None])[0]
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if longest_side is not None:
        picture.thumbnail((longest_side, longest_side))
    return _encoded(picture)


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
