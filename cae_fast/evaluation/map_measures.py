# SPDX-License-Identifier: Apache-2.0
"""How good saliency maps are: by taking pixels away, and against masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..classifier_outputs import softmax
from ..saliency import blurred

Float = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
#: Images [n, C, S, S] -> logits [n, K].
Classify = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

CURVE_STEPS = 32
_REGIONS_A_SIDE = 16  # AOPC takes squares away, side / 16 wide
_AOPC_SHARE = 0.25  # of the squares
_AOPC_STEPS = 16


def fill_sigma(side: int) -> float:
    """Blur of the fill, in pixels: an eighth of the side."""
    return side / 8


@dataclass(frozen=True)
class Curves:
    """Probability of the explained class while pixels are taken away or put back.

    Attributes:
        deletion: [N, CURVE_STEPS + 1], most salient pixels replaced by the blurred image first.
        insertion: The same from the blurred image, most salient pixels put back first.
        aopc: [N]; mean fall of the probability over the first quarter of the squares.
    """

    deletion: Float
    insertion: Float
    aopc: Float


def perturbation_curves(
    images: npt.NDArray[np.float32],
    maps: Float,
    classes: npt.NDArray[np.int64],
    classify: Classify,
    *,
    batch: int = 64,
    seed: int = 0,
) -> Curves:
    """Deletion, insertion (Petsiuk et al., RISE, BMVC 2018) and AOPC (Samek et al., TNNLS 2017).

    Filled with the Gaussian-blurred image. Equal values are ordered at random, so that a flat map
    is a random order. DEVIATION: AOPC takes squares of side / 16 and the first quarter of them,
    where Samek et al. take 100 squares of 9 pixels at 224, a sixth.

    Args:
        images: [N, C, S, S] in [-1, 1].
        maps: Saliency [N, S, S], larger is more important.
        classes: Explained class of each image [N].
        classify: The classifier.
        batch: Images classified at a time.
        seed: Orders equal values.
    """
    count, _, side, _ = images.shape
    fill = blurred(images, fill_sigma(side))
    squares = min(_REGIONS_A_SIDE, side)
    cuts = np.arange(side) * squares // side
    region = cuts[:, None] * squares + cuts[None, :]
    deletion = np.empty((count, CURVE_STEPS + 1))
    insertion = np.empty((count, CURVE_STEPS + 1))
    aopc = np.empty(count)
    shares = np.linspace(0, 1, CURVE_STEPS + 1)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        rank = _ranks(maps[i].reshape(-1), rng).reshape(side, side)
        away = rank[None] < np.rint(shares * side * side)[:, None, None]
        deletion[i] = _probability(
            np.where(away[:, None], fill[i], images[i]), classes[i], classify, batch
        )
        insertion[i] = _probability(
            np.where(away[:, None], images[i], fill[i]), classes[i], classify, batch
        )
        total = np.bincount(region.reshape(-1), maps[i].reshape(-1), squares * squares)
        sizes = np.bincount(region.reshape(-1), minlength=squares * squares)
        order = _ranks(np.asarray(total / sizes, np.float64), rng)[region]
        steps = np.rint(np.linspace(0, _AOPC_SHARE * squares * squares, _AOPC_STEPS + 1))
        gone = order[None] < steps[:, None, None]
        curve = _probability(
            np.where(gone[:, None], fill[i], images[i]), classes[i], classify, batch
        )
        aopc[i] = float((curve[0] - curve).mean())
    return Curves(deletion, insertion, aopc)


def fill_measures(
    images: npt.NDArray[np.float32],
    maps: Float,
    classes: npt.NDArray[np.int64],
    classify: Classify,
    *,
    seed: int = 0,
) -> dict[str, Float]:
    """Areas under deletion and insertion curves, and AOPC, each [N]; see `perturbation_curves`."""
    curves = perturbation_curves(images, maps, classes, classify, seed=seed)
    return {
        "deletion": area_under(curves.deletion),
        "insertion": area_under(curves.insertion),
        "aopc": curves.aopc,
    }


def area_under(curves: Float) -> Float:
    """Area under curves [N, T + 1] over [0, 1], by trapezoids, [N]."""
    area: Float = np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)
    return area


def _ranks(values: Float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """0 for the largest; equal values in random order."""
    shuffled = rng.permutation(len(values))
    order = shuffled[np.argsort(-values[shuffled], kind="stable")]
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values))
    return ranks


def _probability(images: Float, label: int, classify: Classify, batch: int) -> Float:
    pictures = np.ascontiguousarray(images, dtype=np.float32)
    logits = np.concatenate(
        [classify(pictures[first : first + batch]) for first in range(0, len(pictures), batch)]
    )
    return softmax(logits)[:, label]


def pointing(saliency: Float, mask: Mask) -> float:
    """Pointing game (Zhang et al., IJCV 2018): whether the maximum lies inside, in [0, 1].

    Where several pixels have the maximum, the share of them that lies inside.
    """
    return float(mask[saliency == saliency.max()].mean())


def energy_inside(saliency: Float, mask: Mask) -> float:
    """Share of the map's mass inside the mask (Wang et al., Score-CAM, CVPRW 2020), in [0, 1].

    A map of zeros says no more than a flat one, and counts as one: the mask's share of the image.
    """
    total = float(saliency.sum())
    return float(saliency[mask].sum()) / total if total > 0 else float(mask.mean())


def mask_auc(saliency: Float, mask: Mask) -> float:
    """Area under the ROC curve of the map as a detector of the mask's pixels; 0.5 is chance."""
    inside, outside = saliency[mask], np.sort(saliency[~mask])
    below = np.searchsorted(outside, inside, side="left")
    upto = np.searchsorted(outside, inside, side="right")
    return float((below + upto).mean() / (2 * len(outside)))


def best_iou(saliency: Float, mask: Mask) -> float:
    """Intersection over union of the mask with the map above its best threshold."""
    values = saliency.reshape(-1)
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(mask.reshape(-1)[order])
    taken = np.arange(1, len(values) + 1)
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    union = taken[ends] + int(mask.sum()) - hits[ends]
    return float((hits[ends] / union).max())
