# SPDX-License-Identifier: Apache-2.0
"""Measures of maps are asked about the masks themselves, and are caught where they turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cae_fast.evaluation.bootstrap import bootstrap_mean
from cae_fast.evaluation.truth import (
    FILL_MEASURES,
    VERDICTS,
    advantage,
    measure_truth,
    verdict,
    verdicts,
)
from cae_fast.saliency import blurred

SIDE = 32
COUNT = 12


def two_classes(score: np.ndarray) -> np.ndarray:
    return np.stack([-score, score], axis=1).astype(np.float32)


def bright_spot(images: np.ndarray) -> np.ndarray:
    """Class 1 where some pixels are as bright as no blurred image is."""
    return two_classes(20 * (blurred(images[:, 0], 1).max(axis=(1, 2)) - 0.85))


def soft_spot(images: np.ndarray) -> np.ndarray:
    """Class 1 where some of a rough image is smooth: what blurring makes."""
    rough = np.abs(np.diff(images[:, 0], axis=2))
    return two_classes(40 * (0.15 - blurred(rough, 2).min(axis=(1, 2))))


def planted(kind: str) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Rough images; all but the last two have a bright or a smooth spot at random places."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 0.2, (COUNT, 1, SIDE, SIDE)).astype(np.float32)
    masks: list[np.ndarray | None] = [None] * COUNT
    for i in range(COUNT - 2):
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        row, column = rng.integers(2, SIDE - 12, 2)
        mask[row : row + 10, column : column + 10] = True
        images[i, 0][mask] = 1 if kind == "bright" else -0.4
        masks[i] = mask
    return images, masks


def rows_of(measured: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """As `summary_rows` makes them."""
    rows = []
    for measure in FILL_MEASURES:
        apart = advantage(measure, measured["mask"][measure], measured["outside"][measure])
        found = bootstrap_mean(apart, [str(i) for i in range(len(apart))])
        rows.append(
            {
                "kind": "truth",
                "method": "advantage",
                "measure": measure,
                "low": found.low,
                "high": found.high,
                "images": found.count,
            }
        )
    return rows


def test_a_bright_spot_is_told_by_every_measure() -> None:
    images, masks = planted("bright")
    classes = bright_spot(images).argmax(axis=1)
    assert classes.tolist() == [1] * (COUNT - 2) + [0, 0]
    measured = measure_truth(images, masks, classes, bright_spot)
    for measure in FILL_MEASURES:
        assert np.isnan(measured["mask"][measure]).tolist() == [False] * (COUNT - 2) + [True] * 2
    assert np.nanmean(measured["mask"]["deletion"]) < 0.3
    assert np.nanmean(measured["outside"]["deletion"]) > 0.6
    assert verdicts(rows_of(measured)) == dict.fromkeys(FILL_MEASURES, "tells")


def test_a_fill_that_looks_like_the_class_is_caught() -> None:
    """Where blur makes the class, taking the mask away leaves it there."""
    images, masks = planted("smooth")
    classes = soft_spot(images).argmax(axis=1)
    assert classes.tolist() == [1] * (COUNT - 2) + [0, 0]
    measured = measure_truth(images, masks, classes, soft_spot)
    assert np.nanmean(measured["mask"]["deletion"]) > 0.8
    said = verdicts(rows_of(measured))
    assert said == dict.fromkeys(FILL_MEASURES, "cannot tell")


def test_without_masks_there_is_nothing_to_ask() -> None:
    images, _ = planted("bright")
    assert measure_truth(images, [None] * COUNT, np.ones(COUNT, np.int64), bright_spot) == {}
    assert verdicts([]) == {}


@pytest.mark.parametrize(
    ("low", "high", "images", "said"),
    [
        (0.1, 0.2, 8, "tells"),
        (-0.1, 0.2, 8, "cannot tell"),
        (-0.2, -0.1, 8, "turned"),
        (1e-6, 2e-6, 8, "cannot tell"),
        (0.1, 0.2, 7, "too few"),
    ],
)
def test_verdicts(low: float, high: float, images: int, said: str) -> None:
    assert verdict({"low": low, "high": high, "images": images}) == said
    assert said in VERDICTS


def test_an_advantage_is_positive_where_the_first_is_better() -> None:
    less, more = np.array([0.2]), np.array([0.7])
    assert advantage("deletion", less, more)[0] == pytest.approx(0.5)
    assert advantage("insertion", less, more)[0] == pytest.approx(-0.5)
    assert advantage("aopc", more, less)[0] == pytest.approx(0.5)
