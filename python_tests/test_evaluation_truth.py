# SPDX-License-Identifier: Apache-2.0
"""Measures of maps are asked about the masks themselves, and are caught where they turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cae_fast.evaluation.result import Evaluation
from cae_fast.evaluation.tables import image_rows, summary_rows
from cae_fast.evaluation.truth import (
    FILL_MEASURES,
    TRUTH_MAPS,
    VERDICTS,
    measure_truth,
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


def evaluated(kind: str, classify: Any, **changes: Any) -> Evaluation:
    """An evaluation of which only images, masks and one method's values are there."""
    images, masks = planted(kind)
    classes = classify(images).argmax(axis=1)
    assert classes.tolist() == [1] * (COUNT - 2) + [0, 0]
    given = {"masks": masks, "labels": classes, "groups": [str(i) for i in range(COUNT)]} | changes
    result = Evaluation(
        names=[f"{i}.png" for i in range(COUNT)],
        classes=classes,
        class_names=("clear", "spot"),
        images=images,
        explanation=SimpleNamespace(status=np.full(COUNT, "flipped")),  # type: ignore[arg-type]
        counterfactual={},
        measures={"uniform": {name: np.arange(COUNT) / 10 for name in FILL_MEASURES}},
        **given,
    )
    result.truth = measure_truth(images, result.masks, result.labels, classes, classify)
    return result


def said(result: Evaluation) -> dict[str, str]:
    return {measure: each.said for measure, each in verdicts(result).items()}


def test_a_bright_spot_is_told_by_every_measure() -> None:
    result = evaluated("bright", bright_spot)
    for measure in FILL_MEASURES:
        without = np.isnan(result.truth["mask"][measure]).tolist()
        assert without == [False] * (COUNT - 2) + [True] * 2
    assert np.nanmean(result.truth["mask"]["deletion"]) < 0.1
    assert np.nanmean(result.truth["outside"]["deletion"]) > 0.9
    assert np.nanmean(result.truth["mask"]["insertion"]) > 0.9
    assert said(result) == dict.fromkeys(FILL_MEASURES, "tells")


def test_a_fill_that_looks_like_the_class_is_caught() -> None:
    """Where blur makes the class, taking the mask away leaves it there."""
    result = evaluated("smooth", soft_spot)
    assert np.nanmean(result.truth["mask"]["deletion"]) > 0.8
    assert said(result) == dict.fromkeys(FILL_MEASURES, "cannot tell")


def test_masks_that_show_what_speaks_against_the_class_turn_the_measures() -> None:
    """Masks of all but the spot, in place of the spot."""
    masks = [None if mask is None else ~mask for mask in planted("bright")[1]]
    found = said(evaluated("bright", bright_spot, masks=masks))
    assert found == dict.fromkeys(FILL_MEASURES, "turned")


def test_only_images_that_are_read_rightly_count() -> None:
    labels = np.array([0, 0] + [1] * (COUNT - 4) + [0, 0])
    result = evaluated("bright", bright_spot, labels=labels)
    assert np.isnan(result.truth["mask"]["aopc"]).tolist() == (labels == 0).tolist()
    whole = np.ones((SIDE, SIDE), dtype=bool)  # nothing is outside, as small masks may be resized
    masks = [whole, *planted("bright")[1][1:]]
    result = evaluated("bright", bright_spot, masks=masks)
    assert np.isnan(result.truth["mask"]["aopc"][[0, 1]]).tolist() == [True, False]


def test_tables_are_of_the_same_images() -> None:
    result = evaluated("bright", bright_spot)
    rows = [row for row in summary_rows(result, draws=100) if row["kind"] == "truth"]
    assert [row["method"] for row in rows] == [*TRUTH_MAPS, "uniform"] * len(FILL_MEASURES)
    assert {row["images"] for row in rows} == {COUNT - 2}
    assert rows[3]["mean"] == pytest.approx(np.mean(np.arange(COUNT - 2) / 10))
    shown = image_rows(result)
    assert shown[0]["mask:deletion"] == pytest.approx(result.truth["mask"]["deletion"][0], abs=1e-5)
    assert shown[-1]["mask:deletion"] is None


def test_without_masks_there_is_nothing_to_ask() -> None:
    result = evaluated("bright", bright_spot, masks=[None] * COUNT)
    assert result.truth == {}
    assert verdicts(result) == {}
    assert not [row for row in summary_rows(result, draws=100) if row["kind"] == "truth"]


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        ([str(i) for i in range(COUNT)], "tells"),
        (["one"] * COUNT, "tells"),  # images are drawn then
        (["one"] * 6 + ["other"] * 6, "too few"),
        ([str(i // 2) for i in range(COUNT)], "too few"),  # five with a mask
    ],
)
def test_what_is_drawn_anew_must_be_enough(groups: list[str], wanted: str) -> None:
    assert set(said(evaluated("bright", bright_spot, groups=groups)).values()) == {wanted}
    assert wanted in VERDICTS
