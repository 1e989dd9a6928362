# SPDX-License-Identifier: Apache-2.0
"""What of a counterfactual's changes the classifier cares about, found by asking it.

A counterfactual says what would have to change, and a decoder changes more than that. Asking the
classifier about a few regions of the image says which of them speak for its class; together they
show the changes that count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .arrays import Float32, to_numpy
from .classifier_outputs import log_odds
from .counterfactual_maps import SEARCHED, classifies, path_ends
from .memory import in_groups
from .saliency import blurred, peak_at_one

if TYPE_CHECKING:
    from .explainer import Explainer
    from .explanation import Explanation

#: Squares a side; those of a second grid lie across their corners.
_SQUARES = 4
_REGIONS = _SQUARES**2 + (_SQUARES - 1) ** 2
_FILL = 1 / 8  # of the side: blur of what regions are replaced with
_FINE = 1 / 32  # of the side: blur of the change, which is noisy by pixel
_POWER = 0.5  # of the change: regions decide between places, the change within them
_AGAINST = 1e-3  # of the map's peak, at most: what speaks against the class only has an order


@dataclass(frozen=True)
class EvidenceMaps:
    """Evidence for the classes of N images.

    Attributes:
        saliency: [N, H, W] in [0, 1]; the explanation's own map where no path was searched, no
            region speaks for the class, or logits are not finite.
        evidence: Log-odds of the image's class that each pixel's regions are worth, [N, H, W],
            signed; zeros where no path was searched or logits are not finite.
        classified: Images the classifier saw for each, int64 [N].
    """

    saliency: Float32
    evidence: Float32
    classified: npt.NDArray[np.int64]


def evidence_maps(explainer: Explainer, explanation: Explanation) -> EvidenceMaps:
    """Weighs what a counterfactual changes by what each region is worth to the classifier.

    A region's worth is the mean of two differences of the log-odds of the image's class: how much
    they fall when the region alone is blurred, and how much they rise when it alone is left sharp.
    (The first alone is occlusion; the two are the ends of what Shapley's value averages over:
    features that stand for each other are missed by the first, ones that need each other by the
    second.) Regions are 4 x 4 squares and 3 x 3 across their corners, blurred with an eighth of the
    side. The map is the positive worth times the square root of the change to the far end of the
    path.

    Args:
        explainer: What made `explanation`, or one of the same model, classifier and bank.
        explanation: Of the images.

    Returns:
        Maps; 52 images are classified for each that has one.

    Raises:
        ClassifierError: The classifier failed.
        OutOfMemory: One image does not fit.
    """
    found = explanation.numpy()
    count, side = len(found), found.images.shape[-1]
    result = EvidenceMaps(
        np.array(found.saliency, dtype=np.float32),
        np.zeros((count, side, side), dtype=np.float32),
        np.zeros(count, dtype=np.int64),
    )
    rows = np.flatnonzero(np.isin(found.status, SEARCHED))
    result.evidence[rows], result.classified[rows] = region_worth(explainer, explanation, rows)
    told = rows[(result.evidence[rows] > 0).any(axis=(1, 2))]

    def work(group: slice, _: int) -> None:
        mine = told[group]
        result.saliency[mine] = _weighted(explainer, found, mine, result.evidence[mine])

    in_groups(work, len(told), explainer.backend.max_batch, what="images to weigh")
    return result


def region_worth(
    explainer: Explainer, explanation: Explanation, rows: npt.NDArray[np.int64]
) -> tuple[Float32, npt.NDArray[np.int64]]:
    """What regions of some images are worth to the classifier.

    Args:
        explainer: As for :func:`evidence_maps`; so is `explanation`.
        explanation: Of the images.
        rows: Which of them, [M].

    Returns:
        Worth of each pixel's regions, [M, H, W], as `EvidenceMaps.evidence`; images classified for
        each, int64 [M].

    Raises:
        ClassifierError: The classifier failed.
        OutOfMemory: One image does not fit.
    """
    images = to_numpy(explanation.images)
    side = images.shape[-1]
    regions = _regions(side)
    classify = classifies(explainer, explanation)
    evidence = np.zeros((len(rows), side, side), dtype=np.float32)
    classified = np.zeros(len(rows), dtype=np.int64)

    def work(group: slice, limit: int) -> None:
        for i in range(len(rows))[group]:
            label = int(explanation.source_class[rows[i]])
            worth, classified[i] = _worth(classify, images[rows[i]], label, regions, limit)
            evidence[i] = worth if np.isfinite(worth).all() else 0

    in_groups(work, len(rows), explainer.backend.max_batch, what="images to weigh")
    return evidence, classified


def _weighted(
    explainer: Explainer, found: Explanation, rows: npt.NDArray[np.int64], evidence: Float32
) -> Float32:
    """Maps of some images [M, side, side], each with some evidence for its class."""
    images = found.images[rows]
    change = np.abs(path_ends(explainer, found, rows) - images).sum(axis=1)
    fine = np.maximum(blurred(change, _FINE * images.shape[-1]), 0)
    weighted = peak_at_one(np.maximum(evidence, 0) * fine**_POWER)
    order = _AGAINST * np.exp(np.minimum(evidence, 0))
    return np.maximum(weighted, order).astype(np.float32)


def _regions(side: int) -> npt.NDArray[np.bool_]:
    """Masks [25, side, side]: 16 squares that cover the image, and 9 across their corners."""
    place = np.arange(side)
    cuts = place * _SQUARES // side
    half = side // (2 * _SQUARES)
    across = np.where(place < half, -1, (place - half) * _SQUARES // side)
    across[across >= _SQUARES - 1] = -1
    masks = [
        (lines[:, None] == row) & (lines[None, :] == column)
        for lines, number in ((cuts, _SQUARES), (across, _SQUARES - 1))
        for row in range(number)
        for column in range(number)
    ]
    return np.stack(masks)


def _worth(
    classify: Callable[[Float32], Float32],
    image: Float32,
    label: int,
    regions: npt.NDArray[np.bool_],
    limit: int,
) -> tuple[Float32, int]:
    """Worth of each pixel [side, side], and images classified, at most `limit` at a time."""
    side = image.shape[-1]
    blank = blurred(image, _FILL * side)
    inside = regions[:, None]
    without, alone = np.where(inside, blank, image), np.where(inside, image, blank)
    pictures = np.concatenate([image[None], blank[None], without, alone]).astype(np.float32)
    odds = np.concatenate(
        [
            log_odds(classify(pictures[first : first + limit]), label)
            for first in range(0, len(pictures), limit)
        ]
    )
    worth = (odds[0] - odds[2 : 2 + _REGIONS] + odds[2 + _REGIONS :] - odds[1]) / 2
    # A pixel has the mean worth of the one or two regions that it lies in.
    shared = np.tensordot(worth, regions, axes=1) / regions.sum(axis=0)
    return blurred(shared, side / _SQUARES / 6), len(pictures)
