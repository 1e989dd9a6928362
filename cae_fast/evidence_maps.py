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
#: Squares of most worth, whose quarters are asked about as well.
_QUARTERED = 4
#: What a quarter's worth counts beside a whole square's: as much area would be 4.
_QUARTERS = 2.0
_FILL = 1 / 8  # of the side: blur of what regions are replaced with
_FINE = 1 / 32  # of the side: blur of the change, which is noisy by pixel
_POWER = 0.5  # of the change: regions decide between places, the change within them
_AGAINST = 1e-3  # of the map's peak, at most: what speaks against the class only has an order

_Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EvidenceMaps:
    """Evidence for the classes of N images.

    Attributes:
        saliency: [N, H, W] in [0, 1]; the explanation's own map where no path was searched, no
            region speaks for the class, or logits are not finite.
        evidence: What each pixel's regions are worth to the image's class, [N, H, W], signed, in
            log-odds of one image (see :func:`evidence_maps`), to compare within it; zeros where no
            path was searched or logits are not finite.
        classified: Images the classifier saw for each, int64 [N].
    """

    saliency: Float32
    evidence: Float32
    classified: npt.NDArray[np.int64]


def evidence_maps(explainer: Explainer, explanation: Explanation) -> EvidenceMaps:
    """Weighs what a counterfactual changes by what each region is worth to the classifier.

    A region's worth is the sum of two differences of the log-odds of the image's class: how much
    they fall when the region alone is blurred, and how much they rise when it alone is left sharp.
    (The first alone is occlusion; the two are the ends of what Shapley's value averages over:
    features that stand for each other are missed by the first, ones that need each other by the
    second.) One may be several times the other, where the blurred image is far from the class: each
    counts relative to its own mean size over the image's regions. Regions are 4 x 4 squares and 3 x
    3 across their corners, then the quarters of the four squares of most worth, all blurred with an
    eighth of the side. The map is the positive worth times the square root of the change to the far
    end of the path.

    Args:
        explainer: What made `explanation`, or one of the same model, classifier and bank.
        explanation: Of the images.

    Returns:
        Maps; 84 images are classified for each that has one.

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
    result.evidence[rows], result.classified[rows] = region_worth(
        explainer, explanation, rows, quarters=True
    )
    told = rows[(result.evidence[rows] > 0).any(axis=(1, 2))]

    def work(group: slice, _: int) -> None:
        mine = told[group]
        result.saliency[mine] = _weighted(explainer, found, mine, result.evidence[mine])

    in_groups(work, len(told), explainer.backend.max_batch, what="images to weigh")
    return result


def region_worth(
    explainer: Explainer,
    explanation: Explanation,
    rows: npt.NDArray[np.int64],
    *,
    quarters: bool = False,
) -> tuple[Float32, npt.NDArray[np.int64]]:
    """What regions of some images are worth to the classifier.

    The 25 regions of :func:`evidence_maps`, the mean of both differences: weights that are smooth
    and sure, for changes to be chosen by (the smallest edits are smaller by them). With quarters
    the worth that an evidence map is made of, which orders places better.

    Args:
        explainer: As for :func:`evidence_maps`; so is `explanation`.
        explanation: Of the images.
        rows: Which of them, [M].
        quarters: Ask about quarters of squares as well, and size the two differences.

    Returns:
        Worth of each pixel's regions, [M, H, W], as `EvidenceMaps.evidence`; images classified for
        each, int64 [M].

    Raises:
        ClassifierError: The classifier failed.
        OutOfMemory: One image does not fit.
    """
    images = to_numpy(explanation.images)
    side = images.shape[-1]
    grid = _Grid(side)
    classify = classifies(explainer, explanation)
    evidence = np.zeros((len(rows), side, side), dtype=np.float32)
    classified = np.zeros(len(rows), dtype=np.int64)

    def work(group: slice, limit: int) -> None:
        for i in range(len(rows))[group]:
            label = int(explanation.source_class[rows[i]])
            asked = _Asked(classify, images[rows[i]], label, limit)
            worth = grid.quartered_worth(asked) if quarters else grid.worth(asked)
            evidence[i] = worth if np.isfinite(worth).all() else 0
            classified[i] = asked.pictures

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


class _Grid:
    """The regions of images of one size, and what answers about them come to."""

    def __init__(self, side: int) -> None:
        """16 squares that cover the image, 9 across their corners, and the squares' quarters."""
        self._side = side
        place = np.arange(side)
        half = side // (2 * _SQUARES)
        across = np.where(place < half, -1, (place - half) * _SQUARES // side)
        across[across >= _SQUARES - 1] = -1
        squares = _cells(place * _SQUARES // side, _SQUARES)
        self._squares = squares
        self._regions = np.concatenate([squares, _cells(across, _SQUARES - 1)])
        self._quarters = _cells(place * 2 * _SQUARES // side, 2 * _SQUARES)
        lines = np.arange(2 * _SQUARES) // 2
        self._square_of = (lines[:, None] * _SQUARES + lines).reshape(-1)

    def worth(self, asked: _Asked) -> Float32:
        """The mean of both differences for each pixel's regions, [side, side]."""
        without, alone = asked.about(self._regions)
        return self._spread((without + alone) / 2)

    def quartered_worth(self, asked: _Asked) -> Float32:
        """Each difference relative to its mean size; quarters of the best squares, [side, side]."""
        answers = asked.about(self._regions)
        scales = [float(np.abs(each).mean()) for each in answers]
        size = sum(scales) / len(scales)
        if not np.isfinite(size) or size == 0:
            return np.full((self._side, self._side), size, dtype=np.float32)

        def joined(parts: tuple[_Float64, _Float64]) -> _Float64:
            halves = zip(parts, scales, strict=True)
            sized = [part * (size / (2 * scale)) for part, scale in halves if scale > 0]
            return np.asarray(np.sum(sized, axis=0))

        coarse = self._spread(joined(answers))
        by_square = np.tensordot(self._squares, coarse, axes=2) / self._squares.sum(axis=(1, 2))
        best = np.argsort(-by_square, kind="stable")[:_QUARTERED]
        quarters = self._quarters[np.isin(self._square_of, best)]
        fine = np.tensordot(joined(asked.about(quarters)), quarters, axes=1)
        fine = blurred(fine, self._side / _SQUARES / 12)
        return np.asarray(coarse + _QUARTERS * fine, dtype=np.float32)

    def _spread(self, worth: _Float64) -> Float32:
        """The mean worth of the one or two regions that each pixel lies in, smoothed."""
        shared = np.tensordot(worth, self._regions, axes=1) / self._regions.sum(axis=0)
        return np.asarray(blurred(shared, self._side / _SQUARES / 6), dtype=np.float32)


def _cells(lines: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.bool_]:
    """Masks [number^2, side, side] of the cells of a grid, row by row; -1: in none."""
    return np.stack(
        [
            (lines[:, None] == row) & (lines[None, :] == column)
            for row in range(number)
            for column in range(number)
        ]
    )


class _Asked:
    """One image, and the classifier that is asked about regions of it.

    Attributes:
        pictures: How many images it has classified.
    """

    def __init__(
        self,
        classify: Callable[[Float32], Float32],
        image: Float32,
        label: int,
        limit: int,
    ) -> None:
        """At most `limit` images at a time, for the odds of class `label`."""
        self._classify = classify
        self._image, self._blank = image, blurred(image, _FILL * image.shape[-1])
        self._label, self._limit = label, limit
        self._ends: _Float64 | None = None
        self.pictures = 0

    def about(self, regions: npt.NDArray[np.bool_]) -> tuple[_Float64, _Float64]:
        """How the log-odds fall without each of M regions, and rise by each alone: [M] twice."""
        image, blank, inside = self._image, self._blank, regions[:, None]
        pictures = [np.where(inside, blank, image), np.where(inside, image, blank)]
        if self._ends is None:
            found = self._odds(np.concatenate([image[None], blank[None], *pictures]))
            self._ends, found = found[:2], found[2:]
        else:
            found = self._odds(np.concatenate(pictures))
        without, alone = np.split(found, 2)
        return self._ends[0] - without, alone - self._ends[1]

    def _odds(self, pictures: Float32) -> _Float64:
        """Log-odds of the label, [len(pictures)]."""
        self.pictures += len(pictures)
        parts = range(0, len(pictures), self._limit)
        return np.concatenate(
            [
                log_odds(self._classify(pictures[first : first + self._limit]), self._label)
                for first in parts
            ]
        )
