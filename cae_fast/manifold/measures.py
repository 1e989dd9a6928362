# SPDX-License-Identifier: Apache-2.0
"""What the codes of a bank amount to: how many dimensions they use, how well they tell classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cae_fast.errors import BankError

if TYPE_CHECKING:
    from cae_fast.bank import CodeBank

Float64 = npt.NDArray[np.float64]
KNN_NEIGHBOURS = (1, 5, 15)


@dataclass(frozen=True)
class Principal:
    """Principal directions of codes.

    Attributes:
        mean: [D].
        axes: Orthonormal rows [D, D], by falling variance; each axis's largest number is positive.
        variance: Along each axis, [D], in squared units of the codes.
    """

    mean: Float64
    axes: Float64
    variance: Float64

    @classmethod
    def of(cls, codes: npt.ArrayLike) -> Principal:
        """By singular values of the centred codes [B, D]."""
        points = np.asarray(codes, dtype=np.float64)
        mean = points.mean(axis=0)
        # Of the covariance rather than the codes: D is small, B need not be.
        centred = points - mean
        values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(points) - 1))
        axes = vectors.T[::-1]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
        return cls(mean, axes * np.where(largest < 0, -1.0, 1.0), np.maximum(values[::-1], 0.0))

    def project(self, codes: npt.ArrayLike) -> Float64:
        """Coordinates [N, D] of codes along the axes."""
        coordinates: Float64 = (np.asarray(codes, dtype=np.float64) - self.mean) @ self.axes.T
        return coordinates

    def restore(self, coordinates: Float64) -> Float64:
        """Codes [N, D] of coordinates."""
        codes: Float64 = coordinates @ self.axes + self.mean
        return codes

    @property
    def shares(self) -> Float64:
        """Share of the variance along each axis, [D]; zeros where nothing varies."""
        total = self.variance.sum()
        return self.variance / total if total > 0 else np.zeros_like(self.variance)

    @property
    def participation(self) -> float:
        """Participation ratio, (sum v)**2 / sum v**2 of the variances v.

        1 where one axis has all the variance, D where all have the same; 0 where nothing varies
        (Gao et al., A theory of multineuronal dimensionality, bioRxiv 214262, 2017).
        """
        squares = float((self.variance**2).sum())
        return float(self.variance.sum()) ** 2 / squares if squares > 0 else 0.0

    def components(self, share: float) -> int:
        """Axes that hold at least this share of the variance; 0 where nothing varies."""
        if not self.variance.sum() > 0:
            return 0
        return int(np.searchsorted(self.shares.cumsum(), share - 1e-12)) + 1


def centre_accuracy(bank: CodeBank) -> float:
    """Share of images nearest to the centre of their own class, their own group left out of it.

    Where classes are curved this is far below the accuracy of neighbours: a centre then is a poor
    target of a path. Images whose class has no other group are left out.

    Raises:
        BankError: No class has two groups.
    """
    codes = bank.codes.astype(np.float64)
    _, group = np.unique(np.asarray(bank.groups), return_inverse=True)
    classes = np.unique(bank.labels)
    sums = np.stack([codes[bank.labels == c].sum(axis=0) for c in classes])
    counts = np.array([(bank.labels == c).sum() for c in classes], dtype=np.float64)
    right = counted = 0
    members: dict[int, list[int]] = {}
    for row, name in enumerate(group.tolist()):
        members.setdefault(name, []).append(row)
    for rows in members.values():
        own = np.stack([(bank.labels[rows] == c) for c in classes])
        left_counts = counts - own.sum(axis=1)
        left = sums - own.astype(np.float64) @ codes[rows]
        there = left_counts > 0
        centres = left[there] / left_counts[there, None]
        for row in rows:
            if not there[classes == bank.labels[row]][0] or there.sum() < 1:
                continue
            gaps = ((centres - codes[row]) ** 2).sum(axis=1)
            right += int(classes[there][int(gaps.argmin())] == bank.labels[row])
            counted += 1
    if not counted:
        raise BankError("no class has images of two groups, so no accuracy can be measured")
    return right / counted


def knn_accuracies(bank: CodeBank) -> dict[int, float | None]:
    """Accuracy of k neighbours of other groups, k of :data:`KNN_NEIGHBOURS`; None where too few."""
    found: dict[int, float | None] = {}
    for k in KNN_NEIGHBOURS:
        try:
            found[k] = bank.knn_accuracy(k)
        except BankError:
            found[k] = None
    return found
