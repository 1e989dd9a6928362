# SPDX-License-Identifier: Apache-2.0
"""The native operations, one function each; :mod:`cae_fast.reference` has their specification.

Arrays are NumPy arrays, anything with ``__dlpack__`` in CPU memory or anything with
``__array_interface__``: used in place where C-contiguous and aligned, copied otherwise, never
written to. Results are new NumPy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _backend

__all__ = ["difference_saliency", "lerp_codes", "path_codes"]


def lerp_codes(start: Any, end: Any, t: Any) -> npt.NDArray[np.float32]:
    """Points on straight guided paths: (1 - t) * start + t * end.

    Args:
        start: Class codes at t = 0, [N, D] float32.
        end: Class codes at t = 1, [N, D] float32.
        t: Positions, [N] float32. Exact at 0 and 1; other values are not clamped.

    Returns:
        Class codes, [N, D] float32.

    Raises:
        ValueError: Shapes disagree, or an argument is no float32 array in CPU memory.
    """
    return _backend.lerp_codes(start, end, t)


def path_codes(vertices: Any, image_index: Any, step: Any, *, grid: int) -> npt.NDArray[np.float32]:
    """Points on guided paths that are polylines, at t = step / grid by arc length.

    Args:
        vertices: Polylines of class codes, [N, V, D] float32, V >= 1; one vertex is a path
            that stays there.
        image_index: Polyline of each point, [M] int32 in [0, N).
        step: Grid position of each point, [M] int32 in [0, grid].
        grid: Number of grid intervals, >= 1.

    Returns:
        Class codes, [M, D] float32. Vertices are met exactly; a polyline of length zero stays at
        its first vertex.

    Raises:
        ValueError: Shapes disagree, an index or step is out of range, or an argument is no array of
            the stated dtype in CPU memory.
    """
    return _backend.path_codes(vertices, image_index, step, grid)


def difference_saliency(a: Any, b: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Signed difference of two image batches, and their saliency maps.

    Args:
        a: Images (counterfactuals), [N, C, H, W] float32.
        b: What they are compared with (reconstructions), same shape.

    Returns:
        difference [N, C, H, W] = a - b, and saliency [N, H, W] in [0, 1]: the sum over channels of
        its absolute value, divided by its maximum; zeros where that maximum is 0 or not finite.

    Raises:
        ValueError: Shapes disagree, or an argument is no float32 array in CPU memory.
    """
    return _backend.difference_saliency(a, b)
