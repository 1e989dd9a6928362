# SPDX-License-Identifier: Apache-2.0
"""Whether measures that take pixels away tell the truth: what the masks themselves score by them.

Deletion, insertion and AOPC ask the classifier about pictures that no camera takes, and what fills
the hole may itself look like a class (a blurred patch, say, like a lesion). Measures of maps need a
check as maps do (Tomsett et al., AAAI 2020). Where masks are known, here is one: a map of the mask
must do better than a map of all else, and better than pixels in random order, or the measure says
nothing about maps of these images, as far as the classifier uses what the masks show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Float32
from .baselines import Classes
from .bootstrap import Interval, bootstrap_mean
from .map_measures import Classify, fill_measures
from .result import MAP_MEASURES, Evaluation, Float, Mask

#: The measures that take pixels away.
FILL_MEASURES = ("deletion", "insertion", "aopc")
#: The maps that are measured: of the mask, of all else, and of nothing.
TRUTH_MAPS = ("mask", "outside", "random")
#: What can be said of a measure, and how it is told.
VERDICTS = {
    "tells": "places the masks first",
    "cannot tell": "does not tell the masks from the rest",
    "turned": "places the rest, or random pixels, before the masks",
    "too few": "too few images with a mask to say",
}
_FEWEST = 8  # groups of images that are drawn anew
_LEAST = 0.01  # of a probability: what tables of three digits can show


@dataclass(frozen=True)
class Verdict:
    """What is known of one measure.

    Attributes:
        said: One of VERDICTS.
        over_outside: By how much the mask does better than all else, image by image.
        over_random: The same, than pixels in random order.
    """

    said: str
    over_outside: Interval
    over_random: Interval


def measure_truth(
    images: Float32,
    masks: list[Mask | None],
    labels: Classes,
    classes: Classes,
    classify: Classify,
    *,
    seed: int = 0,
) -> dict[str, dict[str, Float]]:
    """What TRUTH_MAPS score by the measures that take pixels away.

    Maps of mask and rest are flat where they are not zero, so pixels of each go in random order.

    Args:
        images: [N, C, S, S] in [-1, 1].
        masks: N masks [S, S] or None.
        labels: Class of each image [N]; a mask shows what speaks for it.
        classes: Explained class of each image [N].
        classify: The classifier.
        seed: Orders equal values.

    Returns:
        By TRUTH_MAPS, then FILL_MEASURES: [N], NaN where there is no mask, nothing outside it, or
        the classifier sees another class; empty where that is all images.
    """
    usable = [
        i
        for i, mask in enumerate(masks)
        if mask is not None and not mask.all() and classes[i] == labels[i]
    ]
    if not usable:
        return {}
    inside = np.stack([masks[i] for i in usable]).astype(np.float64)  # type: ignore[misc]  # no None
    measured = {}
    for name, maps in zip(TRUTH_MAPS, (inside, 1 - inside, np.zeros_like(inside)), strict=True):
        found = fill_measures(images[usable], maps, classes[usable], classify, seed=seed)
        measured[name] = {measure: np.full(len(masks), np.nan) for measure in found}
        for measure, values in found.items():
            measured[name][measure][usable] = values
    return measured


def verdicts(result: Evaluation, *, draws: int = 2000, seed: int = 0) -> dict[str, Verdict]:
    """By measure; empty where no image has a mask that can be used.

    "tells" and "turned" want an interval beyond a hundredth, for both comparisons or for one.

    Args:
        result: With `truth`.
        draws: Of the bootstrap over groups of images.
        seed: Of the bootstrap.
    """
    if not result.truth:
        return {}
    return {measure: _verdict(result, measure, draws, seed) for measure in FILL_MEASURES}


def _verdict(result: Evaluation, measure: str, draws: int, seed: int) -> Verdict:
    mask, outside, noise = (result.truth[name][measure] for name in TRUTH_MAPS)
    sign = 1 if MAP_MEASURES[measure] else -1
    over = [
        bootstrap_mean(sign * (mask - other), result.groups, draws=draws, seed=seed)
        for other in (outside, noise)
    ]
    known = np.isfinite(mask)
    groups = len(set(np.asarray(result.groups, dtype=str)[known].tolist()))
    drawn = groups if groups > 1 else int(known.sum())  # as `bootstrap_mean` draws
    if drawn < _FEWEST:
        said = "too few"
    elif min(each.low for each in over) > _LEAST:
        said = "tells"
    else:
        said = "turned" if min(each.high for each in over) < -_LEAST else "cannot tell"
    return Verdict(said, *over)
