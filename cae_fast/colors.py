# SPDX-License-Identifier: Apache-2.0
"""Colours for maps: saliency laid over an image, signed differences, and the tables behind them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import to_numpy
from .images import to_uint8
from .saliency import resize_map

Uint8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

# Anchors of a ramp in OKLCh: (position, lightness, chroma, hue in degrees). Lightness rises (or, in
# the diverging ramp, falls away from the middle) linearly, so that order is seen as order, also
# in greyscale and by colour-blind readers.
_RAMPS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "inferno": (
        (0.00, 0.08, 0.02, 290.0),
        (0.25, 0.31, 0.14, 305.0),
        (0.50, 0.54, 0.19, 375.0),
        (0.75, 0.76, 0.17, 415.0),
        (1.00, 0.97, 0.08, 465.0),
    ),
    "grey": ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)),
    "diverging": (
        (0.00, 0.38, 0.15, 262.0),
        (0.25, 0.66, 0.11, 250.0),
        (0.50, 0.965, 0.0, 250.0),
        (0.501, 0.965, 0.0, 45.0),
        (0.75, 0.68, 0.14, 45.0),
        (1.00, 0.42, 0.15, 32.0),
    ),
}


def overlay(
    image: Any,
    map: Any,
    *,
    alpha: float = 0.5,
    threshold: float = 0.0,
    colormap: str | npt.ArrayLike = "inferno",
) -> Uint8:
    """Lay a saliency map over its image.

    Opacity grows with the map, from 0 at `threshold` to `alpha` at 1, so that places the map does
    not speak of look as they do in the image: a map of zeros returns the image.

    Args:
        image: `[C, H, W]` or `[N, C, H, W]` in [-1, 1], an array of any kind (NumPy, torch, CuPy,
            DLPack) on any device; values outside are clipped, NaN is black. One or two channels
            are shown as grey (their mean), three and four as RGB (the first three).
        map: `[H', W']` or `[N, H', W']` in [0, 1] (clipped; NaN and infinities count as 0), of any
            kind as well. A map of another size is resized to the image, bilinearly.
        alpha: Opacity where the map is 1, in [0, 1].
        threshold: Map values up to this one are not shown, in [0, 1).
        colormap: "inferno", "grey", "diverging", or a table `[M, 3]` uint8 with M >= 2.

    Returns:
        uint8, `[H, W, 3]` for one image, `[N, H, W, 3]` for a batch: NumPy, whatever came in, for
        this is for showing.

    Raises:
        ValueError: No numbers that the host can read, or ranks, counts, channels or ranges are not
            as above; the message says which.
    """
    images, maps = _host(image, "image"), _host(map, "map")
    if images.ndim not in (3, 4):
        raise ValueError(f"image: shape {images.shape}, wanted [C, H, W] or [N, C, H, W]")
    if maps.ndim != images.ndim - 1 or (images.ndim == 4 and len(maps) != len(images)):
        wanted = "[H, W]" if images.ndim == 3 else f"[{len(images)}, H, W]"
        raise ValueError(f"map: shape {maps.shape}, wanted {wanted} for image {images.shape}")
    if 0 in maps.shape[-2:] and 0 not in images.shape[-2:]:
        raise ValueError(f"map: shape {maps.shape} has no pixels")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: {alpha}, wanted a number in [0, 1]")
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold: {threshold}, wanted a number in [0, 1)")
    table = color_table(colormap)
    if images.ndim == 3:
        single: Uint8 = _overlay_batch(images[None], maps[None], alpha, threshold, table)[0]
        return single
    return _overlay_batch(images, maps, alpha, threshold, table)


def _host(array: Any, argument: str) -> npt.NDArray[Any]:
    """Any array as NumPy numbers."""
    try:
        host = to_numpy(array)
    except TypeError as error:
        raise ValueError(f"{argument}: no array of numbers ({error})") from None
    if host.dtype.kind not in "fiub":
        raise ValueError(f"{argument}: {host.dtype}, wanted an array of numbers")
    return host


def _overlay_batch(
    images: npt.NDArray[Any], maps: npt.NDArray[Any], alpha: float, threshold: float, table: Uint8
) -> Uint8:
    base = to_rgb(images)
    if base.size == 0:
        return base
    values = resize_map(maps, base.shape[1], base.shape[2])
    weight = np.clip((values - threshold) / (1.0 - threshold), 0.0, 1.0)
    # The square root keeps half-strong places visible; the colour already carries the value.
    weight = alpha * np.sqrt(weight)[..., None]
    colors = apply_colors(values, table)
    mixed: Uint8 = np.rint(base * (1.0 - weight) + colors * weight).astype(np.uint8)
    return mixed


def to_rgb(images: npt.ArrayLike) -> Uint8:
    """Images in [-1, 1] as RGB bytes.

    Args:
        images: `[..., C, H, W]`, C in 1..4. Values outside [-1, 1] are clipped, NaN is black.

    Returns:
        uint8 `[..., H, W, 3]`; one and two channels as grey, of four the first three.

    Raises:
        ValueError: Fewer than three dimensions, or C not in 1..4.
    """
    values = np.asarray(images, dtype=np.float64)
    if values.ndim < 3 or not 1 <= values.shape[-3] <= 4:
        raise ValueError(f"image: shape {values.shape}, wanted [..., C, H, W] with C in 1..4")
    channels, height, width = values.shape[-3:]
    count = math.prod(values.shape[:-3])
    flat = np.clip(values, -1.0, 1.0).reshape(count, channels, height, width)
    if channels < 3:
        flat = np.repeat(flat.mean(axis=1, keepdims=True), 3, axis=1)
    return to_uint8(flat[:, :3]).reshape(*values.shape[:-3], height, width, 3)


def signed_rgb(difference: npt.ArrayLike, limit: float | None = None) -> Uint8:
    """Signed differences in diverging colours: blue is darker, orange is brighter, 0 near-white.

    Args:
        difference: `[C, H, W]`; channels are averaged. NaN and infinities count as 0.
        limit: The size shown at full colour; the largest size in the difference when None.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: `difference` has not three dimensions.
    """
    values = np.asarray(difference, dtype=np.float64)
    if values.ndim != 3:
        raise ValueError(f"difference: shape {values.shape}, wanted [C, H, W]")
    mean = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).mean(axis=0)
    top = float(np.abs(mean).max(initial=0.0)) if limit is None else float(limit)
    scaled = mean / top if top > 0 else np.zeros_like(mean)
    return apply_colors(np.clip(scaled, -1.0, 1.0) * 0.5 + 0.5, color_table("diverging"))


def apply_colors(values: npt.NDArray[np.floating[Any]], table: Uint8) -> Uint8:
    """Colours of values in [0, 1] by a table `[M, 3]`: uint8 `[..., 3]`."""
    colors: Uint8 = table[np.rint(values * (len(table) - 1)).astype(np.int64)]
    return colors


def color_table(colormap: str | npt.ArrayLike) -> Uint8:
    """A colour table, uint8 `[M, 3]`, by name or as given.

    Raises:
        ValueError: The name is unknown, or the table is not `[M, 3]` uint8 with M >= 2.
    """
    if isinstance(colormap, str):
        if colormap not in _RAMPS:
            raise ValueError(f"colormap: {colormap!r}, wanted one of {', '.join(sorted(_RAMPS))}")
        return _ramp_table(colormap)
    table = np.asarray(colormap)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] != 3 or table.dtype != np.uint8:
        raise ValueError(f"colormap: {table.dtype} {table.shape}, wanted uint8 [M, 3] with M >= 2")
    return table


@functools.cache
def _ramp_table(name: str) -> Uint8:
    anchors = np.array(_RAMPS[name])
    # 257 entries give a diverging ramp a true middle: zero is neutral.
    position = np.linspace(0.0, 1.0, 257)
    lightness, chroma, hue = (np.interp(position, anchors[:, 0], anchors[:, i]) for i in (1, 2, 3))
    rgb = _oklch_to_srgb(lightness, chroma, np.radians(hue))
    table = np.rint(rgb * 255.0).astype(np.uint8)
    table.flags.writeable = False
    return table


def _oklch_to_srgb(lightness: Float, chroma: Float, hue: Float) -> Float:
    """OKLab (Ottosson, 2020) in polar form to gamma-encoded sRGB, clipped to [0, 1]."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0.0, 1.0)
    encoded: Float = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return encoded
