# SPDX-License-Identifier: Apache-2.0
"""The smallest part of an image that, replaced by its counterfactual's, changes its class.

A counterfactual differs a little everywhere, because a decoder draws it anew. What of that decides
is found by asking the classifier: pixels of the image itself are replaced, those first that change
most in the regions that are worth most to it, as few as it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .arrays import Float32
from .classifier_outputs import softmax
from .counterfactual_maps import classifies, path_ends
from .evidence_maps import region_worth
from .memory import in_groups
from .saliency import blurred, peak_at_one

if TYPE_CHECKING:
    from .explainer import Explainer
    from .explanation import Explanation

_STEPS = 10
#: Of the map outside of the edit: it only puts those pixels into an order.
_OUTSIDE = 1e-3
#: Of a region's worth, before it weighs the change: with 2 the fewest pixels are needed.
_POWER = 2
#: Of the largest worth: what regions count at least that are worth nothing.
_LEAST = 1e-4


@dataclass(frozen=True)
class MinimalEdits:
    """Edits of N images.

    Attributes:
        images: The images with the edit's pixels replaced, [N, C, H, W]; unchanged where none is.
        edit: Which pixels are, bool [N, H, W].
        saliency: [N, H, W] in [0, 1]: what pixels were ranked by, a thousandth of that outside of
            the edit, its maximum at 1; the explanation's own map where there is no edit.
        flipped: Whether the edited image is of the class that the counterfactual reached, bool [N].
        classified: Images the classifier saw for each, int64 [N].
    """

    images: Float32
    edit: npt.NDArray[np.bool_]
    saliency: Float32
    flipped: npt.NDArray[np.bool_]
    classified: npt.NDArray[np.int64]


def minimal_edits(
    explainer: Explainer, explanation: Explanation, sigma: float | None = None
) -> MinimalEdits:
    """Replaces as few pixels of each image as change its class, by those of its counterfactual.

    They are taken from the end of the guided path, where its class is the one reached at the flip;
    else, or where the exemplar is no bank row, from the counterfactual. They are ranked by their
    change, blurred and summed over channels, times the squared worth of their regions (see
    :func:`cae_fast.evidence_maps.region_worth`): a counterfactual may change two things of which
    one decides. Their number is found by bisection of its logarithm; every edit returned was
    classified.

    Args:
        explainer: What made `explanation`, or one of the same model, classifier and bank.
        explanation: Of the images.
        sigma: Of the Gaussian that the change is blurred with before pixels are ranked, in pixels,
            finite and not negative; None is a sixteenth of the side.

    Returns:
        Edits; none for images that did not flip.

    Raises:
        ValueError: `sigma` is out of range.
        ClassifierError: The classifier failed.
        OutOfMemory: One image does not fit.
    """
    found = explanation.numpy()
    side = found.images.shape[-1]
    if sigma is None:
        sigma = side / 16
    if isinstance(sigma, bool) or not np.isfinite(sigma) or sigma < 0:
        raise ValueError(f"sigma must be a number of pixels of at least 0, got {sigma!r}")
    count = len(found)
    result = MinimalEdits(
        np.array(found.images, dtype=np.float32),
        np.zeros((count, *found.images.shape[2:]), dtype=np.bool_),
        np.array(found.saliency, dtype=np.float32),
        np.zeros(count, dtype=np.bool_),
        np.zeros(count, dtype=np.int64),
    )
    rows = np.flatnonzero(found.status == "flipped")
    classify = classifies(explainer, explanation)
    evidence, asked = region_worth(explainer, explanation, rows)

    def work(group: slice, _: int) -> None:
        mine = rows[group]
        _edit(explainer, classify, found, mine, evidence[group], float(sigma), result)

    in_groups(work, len(rows), explainer.backend.max_batch, what="images to edit")
    result.classified[rows] += asked
    return result


def _edit(
    explainer: Explainer,
    classify: Callable[[Float32], Float32],
    found: Explanation,
    rows: npt.NDArray[np.int64],
    evidence: Float32,
    sigma: float,
    result: MinimalEdits,
) -> None:
    """Edits the images of `rows`, all of which flipped, by the evidence [M, H, W] in them."""
    images = np.ascontiguousarray(found.images[rows])
    reached = found.reached_class[rows]
    least = found.meta["parameters"]["min_probability"]
    spent = np.zeros(len(rows), dtype=np.int64)

    def flips(pictures: Float32) -> npt.NDArray[np.bool_]:
        logits = classify(pictures)
        chance = softmax(logits)
        spent[:] += 1
        sure = chance[np.arange(len(rows)), reached] >= least
        return np.asarray((logits.argmax(axis=1) == reached) & sure)

    donor = np.clip(np.ascontiguousarray(found.counterfactual[rows]), -1, 1)
    if (found.exemplar[rows] >= 0).all(axis=1).any():
        ends = path_ends(explainer, found, rows)
        donor = np.where(flips(ends)[:, None, None, None], ends, donor)

    change = blurred(np.abs(donor - images).sum(axis=1), sigma) * _weights(evidence)
    flat = change.reshape(len(rows), -1)
    order = np.empty(flat.shape, dtype=np.int64)
    ranks = np.broadcast_to(np.arange(flat.shape[1]), flat.shape)
    np.put_along_axis(order, np.argsort(-flat, axis=1, kind="stable"), ranks, axis=1)
    place = order.reshape(change.shape)

    def edited(pixels: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.bool_], Float32]:
        edit = place < np.rint(pixels)[:, None, None]
        return edit, np.where(edit[:, None], donor, images)

    good = flips(donor)
    low, high = np.zeros(len(rows)), np.full(len(rows), np.log2(flat.shape[1]))
    for step in range(_STEPS + 1):
        middle = np.where(step == 0, low, (low + high) / 2)  # first one pixel, then by halves
        hit = flips(edited(2.0**middle)[1])
        high = np.where(hit, middle, high)
        low = np.where(hit, low, middle)
    edit, pictures = edited(2.0**high)
    keep = good[:, None, None]
    result.images[rows] = np.where(keep[:, None], pictures, images)
    result.edit[rows] = edit & keep
    marked = peak_at_one(np.where(edit, change, _OUTSIDE * change))
    result.saliency[rows] = np.where(keep, marked, found.saliency[rows])
    result.flipped[rows] = good
    result.classified[rows] = spent


def _weights(evidence: Float32) -> npt.NDArray[np.float64]:
    """What changes count [M, H, W], in (0, 1]; 1 where no region is worth anything."""
    worth = peak_at_one(np.maximum(evidence, 0)).astype(np.float64)
    told = worth.any(axis=(1, 2), keepdims=True)
    return np.where(told, np.maximum(worth, _LEAST) ** _POWER, 1.0)
