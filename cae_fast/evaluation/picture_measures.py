# SPDX-License-Identifier: Apache-2.0
"""How good counterfactuals are: near, sparse, realistic, and reached without detours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..saliency import blurred

if TYPE_CHECKING:
    from ..bank import CodeBank

Float = npt.NDArray[np.floating]

_SSIM_SIGMA = 1.5  # of the Gaussian window in pixels, as Wang et al. have it
CHANGED = 0.1  # a pixel counts as changed from here, of the range 2 of pixels
NEIGHBOURS = 5


def mean_l1(first: Float, second: Float) -> Float:
    """Mean absolute difference of images [N, C, H, W], [N]; the range of pixels is 2."""
    result: Float = np.abs(np.asarray(first, np.float64) - second).mean(axis=(1, 2, 3))
    return result


def ssim(first: Float, second: Float) -> Float:
    """Structural similarity (Wang et al., IEEE TIP 2004) of images [N, C, H, W] in [-1, 1], [N].

    Gaussian window of 1.5 pixels, mirrored borders, mean over pixels and channels.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2

    def mean(values: Float) -> Float:
        return blurred(values, _SSIM_SIGMA).astype(np.float64)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    top = (2 * mx * my + c1) * (2 * cov + c2)
    bottom = (mx * mx + my * my + c1) * (vx + vy + c2)
    result: Float = (top / bottom).mean(axis=(1, 2, 3))
    return result


def changed_share(difference: Float) -> Float:
    """Share of pixels of [N, C, H, W] that change by a twentieth of the range or more, [N]."""
    result: Float = (np.abs(difference).max(axis=1) >= CHANGED).mean(axis=(1, 2))
    return result


def code_realism(codes: Float, classes: npt.NDArray[np.int64], bank: CodeBank) -> Float:
    """How far re-encoded codes lie from real ones of their class, [N]; 1 is as real images do.

    Mean distance to the 5 nearest codes of that class in the bank, divided by the median of the
    same for the bank's own images of the class. NaN where the class has too few.
    """
    result = np.full(len(codes), np.nan)
    known = bank.codes.astype(np.float64)
    for label in np.unique(classes):
        members = known[bank.labels == label]
        if label < 0 or len(members) < 3:
            continue
        k = min(NEIGHBOURS, len(members) - 1)
        own = _distances(members, members)
        np.fill_diagonal(own, np.inf)
        usual = float(np.median(np.sort(own, axis=1)[:, :k].mean(axis=1)))
        rows = np.flatnonzero(classes == label)
        far = np.sort(_distances(np.asarray(codes, np.float64)[rows], members), axis=1)
        result[rows] = far[:, :k].mean(axis=1) / max(usual, 1e-12)
    return result


def _distances(first: Float, second: Float) -> Float:
    result: Float = np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=2))
    return result


def monotonicity(probability: Float) -> Float:
    """1 - (what curves [N, T] fall) / (what they rise and fall in all), [N]; 1 never falls.

    A curve that never moves is NaN.
    """
    steps = np.diff(np.asarray(probability, np.float64), axis=1)
    moved = np.abs(steps).sum(axis=1)
    fallen = np.clip(-steps, 0, None).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Float = np.where(moved > 1e-9, 1 - fallen / moved, np.nan)
    return result
