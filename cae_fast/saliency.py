# SPDX-License-Identifier: Apache-2.0
"""From differences of images to saliency maps: of two, of a path, averaged, smoothed, resized.

A map that is averaged, weighted or smoothed is a new array; the map it was made of stays as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import ops
from .arrays import Float32, resize_weights


def difference_saliency(counterfactual: Float32, reference: Float32) -> tuple[Float32, Float32]:
    """Signed difference of two image batches, and its map.

    Args:
        counterfactual: Images [N, C, H, W], float32.
        reference: What they are compared with, same shape.

    Returns:
        difference [N, C, H, W] = counterfactual - reference, and saliency [N, H, W] in [0, 1]: the
        sum over channels of its absolute value divided by its maximum; zeros where that maximum is
        0.

    Raises:
        ValueError: Shapes or dtypes disagree.
    """
    difference, saliency = ops.difference_saliency(counterfactual, reference)
    return difference, saliency


def resize_map(saliency: npt.ArrayLike, height: int, width: int) -> Float32:
    """Saliency maps at another resolution, bilinear with half-pixel centres.

    Args:
        saliency: [..., H, W], in [0, 1] (clipped; NaN and infinities count as 0), H, W >= 1.
        height: Rows of the result, at least 1.
        width: Columns of the result, at least 1.

    Returns:
        [..., height, width], float32; antialiased where smaller, within the range of the input.

    Raises:
        ValueError: `saliency` is not at least two-dimensional, or a size is below 1.
    """
    values = np.asarray(saliency, dtype=np.float64)
    if values.ndim < 2 or 0 in values.shape[-2:]:
        raise ValueError(f"saliency must be [..., H, W], got {list(values.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    maps: npt.NDArray[Any] = np.clip(finite, 0.0, 1.0).astype(np.float32)
    rows = resize_weights(maps.shape[-2], height)
    columns = resize_weights(maps.shape[-1], width)
    resized: Float32 = rows @ maps @ columns.T
    return np.clip(resized, maps.min(initial=np.inf), maps.max(initial=-np.inf), out=resized)


def peak_at_one(saliency: npt.ArrayLike) -> Float32:
    """Maps [..., H, W], not negative, each divided by its maximum; zeros stay zeros."""
    maps = np.asarray(saliency, dtype=np.float64)
    peak = maps.max(axis=(-2, -1), keepdims=True, initial=0.0)
    return (maps / np.where(peak > 0, peak, 1.0)).astype(np.float32)


def smooth_saliency(saliency: npt.ArrayLike, sigma: float) -> Float32:
    """Maps under a Gaussian blur, their maximum at 1 again.

    Args:
        saliency: [..., H, W], finite and not negative; left as it is.
        sigma: Standard deviation of the Gaussian in pixels, finite and not negative; 0 smooths
            nothing. Borders are mirrored, so that no mass is lost there.

    Returns:
        [..., H, W], float32 in [0, 1].

    Raises:
        ValueError: Wrong rank, values or sigma.
    """
    maps = _checked_maps(saliency)
    if isinstance(sigma, bool) or not np.isfinite(sigma) or sigma < 0:
        raise ValueError(f"sigma must be a number of pixels of at least 0, got {sigma!r}")
    return peak_at_one(np.maximum(blurred(maps, float(sigma)), 0))


def mean_saliency(saliency: npt.ArrayLike, flipped: npt.ArrayLike) -> Float32:
    """Mean of those of k maps an image whose counterfactual flips, its maximum at 1.

    Args:
        saliency: [N, k, H, W], finite and not negative.
        flipped: Which of them count, bool [N, k].

    Returns:
        [N, H, W], float32 in [0, 1]; zeros where none counts.

    Raises:
        ValueError: Shapes disagree, or values are NaN, Inf or negative.
    """
    maps = _checked_maps(saliency)
    counted = np.asarray(flipped, dtype=np.bool_)
    if maps.ndim != 4 or counted.shape != maps.shape[:2]:
        raise ValueError(
            "saliency must be [N, k, H, W] and flipped [N, k], got "
            f"{list(maps.shape)} and {list(counted.shape)}"
        )
    number = np.maximum(counted.sum(axis=1), 1)[:, None, None]
    return peak_at_one((maps * counted[:, :, None, None]).sum(axis=1) / number)


def path_saliency(frames: npt.ArrayLike, probability: npt.ArrayLike) -> Float32:
    """What changes along a path, counted where the classifier changes its mind.

    The sum over steps of the path of abs(next frame - frame), summed over channels, times
    abs(next probability - probability). Its maximum is 1 afterwards.

    Args:
        frames: Images along each path, in its order, [N, T, C, H, W], finite, T >= 2.
        probability: Of the target class, [N, T], in [0, 1].

    Returns:
        [N, H, W], float32 in [0, 1]; zeros where picture or probability never change.

    Raises:
        ValueError: Shapes disagree, T < 2, or values are NaN, Inf or out of range.
    """
    pictures = np.asarray(frames, dtype=np.float32)
    chance = np.asarray(probability, dtype=np.float64)
    if pictures.ndim != 5 or pictures.shape[1] < 2 or chance.shape != pictures.shape[:2]:
        raise ValueError(
            "frames must be [N, T, C, H, W] with T >= 2, and probability [N, T], got "
            f"{list(pictures.shape)} and {list(chance.shape)}"
        )
    if not np.isfinite(pictures).all():
        raise ValueError("frames hold NaN or Inf")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError("probability must be in [0, 1]")
    weights = np.abs(np.diff(chance, axis=1))
    total = np.zeros((len(pictures), *pictures.shape[3:]))
    for step in range(pictures.shape[1] - 1):
        change = np.abs(pictures[:, step + 1] - pictures[:, step]).sum(axis=1, dtype=np.float64)
        total += weights[:, step, None, None] * change
    return peak_at_one(total)


def _checked_maps(saliency: npt.ArrayLike) -> npt.NDArray[np.float64]:
    maps = np.asarray(saliency, dtype=np.float64)
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ValueError(f"saliency must be [..., H, W], got {list(maps.shape)}")
    if not (np.isfinite(maps) & (maps >= 0)).all():
        raise ValueError("saliency must be finite and not negative")
    return maps


def blurred(images: npt.ArrayLike, sigma: float) -> Float32:
    """Gaussian blur [..., H, W] with mirrored borders; `sigma` in pixels, 0 leaves it as it is."""
    values = np.asarray(images, dtype=np.float32)
    if sigma <= 0:
        return values
    rows = _blur_matrix(values.shape[-2], sigma)
    columns = _blur_matrix(values.shape[-1], sigma)
    return np.asarray(rows @ values @ columns.T, dtype=np.float32)


def _blur_matrix(side: int, sigma: float) -> Float32:
    reach = max(1, int(np.ceil(3 * sigma)))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((side, side))
    period = 2 * side
    for row in range(side):
        where = (row + offsets) % period
        np.add.at(matrix[row], np.where(where < side, where, period - 1 - where), weights)
    return matrix.astype(np.float32)
