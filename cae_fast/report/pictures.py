# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report: pixels in any form, heat layers, data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cae_fast.colors import apply_colors, color_table, to_rgb
from cae_fast.saliency import resize_map

Uint8 = npt.NDArray[np.uint8]


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def shrink(pixels: Uint8, side: int) -> Uint8:
    """Pixels `[H, W, 3]` with the longer side at most `side`; smaller ones are left alone."""
    height, width = pixels.shape[:2]
    if max(height, width) <= side:
        return pixels
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def picture_pixels(picture: Any) -> Uint8:
    """A picture in any form a caller has, as uint8 `[H, W, 3]`.

    Args:
        picture: `[C, H, W]` float in [-1, 1], uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3 or 4]`,
            a PIL image, or the bytes of a PNG file (a bank's thumbnail).

    Raises:
        ValueError: The picture has none of these forms.
    """
    if isinstance(picture, bytes):
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as opened:
            return np.asarray(opened.convert("RGB"))
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        return to_rgb(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"picture: uint8 {array.shape}, wanted [H, W], [H, W, 1], [H, W, 3 or 4]")
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array[..., :3])


def heat_pixels(saliency: npt.ArrayLike, size: tuple[int, int] | None = None) -> Uint8:
    """A saliency map as a see-through layer to lie over its image.

    Alpha is 255 * sqrt(map), so a reader of the file gets the map back from alpha alone.

    Args:
        saliency: `[H, W]` in [0, 1].
        size: (height, width) to resize to; None keeps the map's own.

    Returns:
        uint8 `[H, W, 4]`.
    """
    height, width = size or np.shape(saliency)
    values = resize_map(saliency, height, width)
    alpha = np.rint(255.0 * np.sqrt(values)).astype(np.uint8)
    return np.concatenate([apply_colors(values, color_table("inferno")), alpha[..., None]], axis=-1)


def finite(array: npt.ArrayLike) -> bool:
    """Whether every number is finite."""
    return bool(np.isfinite(np.asarray(array)).all())
