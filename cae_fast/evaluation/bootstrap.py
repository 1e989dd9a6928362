# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of means, by drawing images (or their groups) again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; NaN where nothing was measured.

    Attributes:
        mean: Over images.
        low: 2.5 % of the means drawn.
        high: 97.5 % of them.
        count: Images measured.
    """

    mean: float
    low: float
    high: float
    count: int


def bootstrap_mean(
    values: npt.ArrayLike, groups: Sequence[str], *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean of the finite values with a percentile interval (Efron, 1979) over groups.

    Args:
        values: [N]; NaN is left out.
        groups: Group of each, N; whole groups are drawn with replacement. Where all are of one,
            images are drawn: what other groups would give stays unknown.
        draws: How often.
        seed: Of the draws.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(groups),):
        raise ValueError(f"values must be [{len(groups)}], one a group, got {list(numbers.shape)}")
    known = np.isfinite(numbers)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan, 0)
    _, member = np.unique(np.asarray(groups, dtype=str)[known], return_inverse=True)
    if not member.any():
        member = np.arange(len(member))
    sums = np.bincount(member, numbers[known])
    sizes = np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(numbers[known].mean()), float(low), float(high), int(known.sum()))
