# SPDX-License-Identifier: Apache-2.0
"""From the difference of two images to a saliency map, and the map at another resolution."""

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
