# SPDX-License-Identifier: Apache-2.0
"""The plane in which the page shows class codes: the first two principal components of a bank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_MOST_POINTS = 2000


@dataclass(frozen=True)
class Plane:
    """An affine map of class codes to the plane.

    Attributes:
        mean: Of the codes, float64 [D].
        axes: Orthonormal rows, float64 [2, D]; the second is zero where D is 1.
        explained: Shares of the variance along both axes, [2].
    """

    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    explained: tuple[float, float]

    @classmethod
    def of(cls, codes: npt.ArrayLike) -> Plane:
        """Principal components of codes [B, D] by the eigenvectors of their covariance.

        Of each axis the largest component is positive, so that a picture does not turn over.
        """
        points = np.asarray(codes, dtype=np.float64)
        mean = points.mean(axis=0)
        centred = points - mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(points))
        order = np.argsort(values)[::-1][:2]
        axes = np.zeros((2, points.shape[1]))
        axes[: len(order)] = vectors[:, order].T
        signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
        axes *= np.where(signs == 0, 1, signs)[:, None]
        shares = np.zeros(2)
        shares[: len(order)] = np.maximum(values[order], 0) / max(float(values.sum()), 1e-300)
        return cls(mean, axes, (float(shares[0]), float(shares[1])))

    def place(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Codes [N, D] -> positions [N, 2]."""
        placed = (np.asarray(codes, dtype=np.float64) - self.mean) @ self.axes.T
        return placed.astype(np.float32)


def shown_points(positions: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Any:
    """At most 2000 rows [x, y, label] of a bank, evenly taken, for the page."""
    count = len(positions)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(int))
    return [
        [round(float(x), 5), round(float(y), 5), int(label)]
        for (x, y), label in zip(positions[chosen], labels[chosen], strict=True)
    ]
