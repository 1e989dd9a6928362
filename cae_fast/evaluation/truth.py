# SPDX-License-Identifier: Apache-2.0
"""Whether measures that take pixels away tell the truth: what the masks themselves score by them.

Deletion, insertion and AOPC ask the classifier about pictures that no camera takes, and what fills
the hole may itself look like a class (a blurred patch, say, like a lesion). Measures of maps need a
check as maps do (Tomsett et al., AAAI 2020). Where masks are known, here is one: a map of the mask
must do better than a map of all else, or the measure says nothing about maps of these images, as
far as the classifier uses what the masks show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Float32
from .baselines import Classes
from .map_measures import Classify, fill_measures
from .result import MAP_MEASURES, Float, Mask

#: The measures that take pixels away.
FILL_MEASURES = ("deletion", "insertion", "aopc")
#: What is known of `verdict`, and how it is told.
VERDICTS = {
    "tells": "places the mask before the rest",
    "cannot tell": "does not tell the mask from the rest",
    "turned": "places the rest before the mask",
    "too few": "too few images with a mask to say",
}
_FEWEST = 8
_LEAST = 0.01  # of a probability: what tables of three digits can show


def measure_truth(
    images: Float32,
    masks: Sequence[Mask | None],
    classes: Classes,
    classify: Classify,
    *,
    seed: int = 0,
) -> dict[str, dict[str, Float]]:
    """What maps of the masks, and of all else, score by the measures that take pixels away.

    Both maps are flat where they are not zero, so pixels of each go in random order.

    Args:
        images: [N, C, S, S] in [-1, 1].
        masks: N masks [S, S] or None.
        classes: Explained class of each image [N].
        classify: The classifier.
        seed: Orders equal values.

    Returns:
        By "mask" and "outside", then FILL_MEASURES: [N], NaN without a mask; empty where no image
        has one.
    """
    rows = [i for i, mask in enumerate(masks) if mask is not None]
    if not rows:
        return {}
    inside = np.stack([masks[i] for i in rows])  # type: ignore[misc]  # None is left out
    measured = {}
    for name, maps in (("mask", inside), ("outside", ~inside)):
        values = fill_measures(
            images[rows], maps.astype(np.float64), classes[rows], classify, seed=seed
        )
        measured[name] = {
            measure: _at(rows, found, len(masks)) for measure, found in values.items()
        }
    return measured


def advantage(measure: str, values: Float, others: Float) -> Float:
    """By how much `values` are better than `others`, whichever way the measure goes."""
    return values - others if MAP_MEASURES[measure] else others - values


def verdict(row: Mapping[str, Any]) -> str:
    """One of VERDICTS, by a row of `summary_rows` with the mask's advantage over the rest.

    The interval must lie beyond a hundredth, on one side or the other.
    """
    if row["images"] < _FEWEST:
        return "too few"
    if row["low"] > _LEAST:
        return "tells"
    return "turned" if row["high"] < -_LEAST else "cannot tell"


def verdicts(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By measure; empty where no image has a mask."""
    return {
        row["measure"]: verdict(row)
        for row in rows
        if (row["kind"], row["method"]) == ("truth", "advantage")
    }


def _at(rows: Sequence[int], values: Float, count: int) -> Float:
    spread = np.full(count, np.nan)
    spread[rows] = values
    return spread
