# SPDX-License-Identifier: Apache-2.0
"""The measures of an evaluation: cases worked by hand, chance levels, bounds."""

from __future__ import annotations

import numpy as np
import pytest

from cae_fast.evaluation.bootstrap import bootstrap_mean
from cae_fast.evaluation.map_measures import (
    area_under,
    best_iou,
    energy_inside,
    mask_auc,
    perturbation_curves,
    pointing,
)
from cae_fast.evaluation.picture_measures import changed_share, mean_l1, monotonicity, ssim
from cae_fast.evaluation.result import judge_classifier
from cae_fast.evaluation.sanity import rank_correlation
from cae_fast.saliency import blurred

MASK = np.zeros((8, 8), dtype=bool)
MASK[2:4, 2:4] = True


def test_a_map_that_is_the_mask_is_perfect_and_its_inverse_is_not() -> None:
    true, false = MASK.astype(float), (~MASK).astype(float)
    for measure in (pointing, energy_inside, mask_auc, best_iou):
        assert measure(true, MASK) == 1
    assert [m(false, MASK) for m in (pointing, energy_inside, mask_auc)] == [0, 0, 0]
    assert best_iou(false, MASK) == pytest.approx(4 / 64)  # everything taken


def test_flat_and_zero_maps_know_nothing() -> None:
    for flat in (np.ones((8, 8)), np.zeros((8, 8))):
        assert pointing(flat, MASK) == pytest.approx(4 / 64)
        assert energy_inside(flat, MASK) == pytest.approx(4 / 64)
        assert mask_auc(flat, MASK) == 0.5
        assert best_iou(flat, MASK) == pytest.approx(4 / 64)


def test_a_case_by_hand() -> None:
    saliency = np.array([[3.0, 2.0], [1.0, 0.0]])
    mask = np.array([[True, False], [True, False]])
    assert pointing(saliency, mask) == 1
    assert energy_inside(saliency, mask) == pytest.approx(4 / 6)
    assert mask_auc(saliency, mask) == pytest.approx(3 / 4)  # pairs won: 2 of 2, and 1 of 2
    assert best_iou(saliency, mask) == pytest.approx(2 / 3)


def sum_of_corner(images: np.ndarray) -> np.ndarray:
    """Two classes: class 1 as bright as the corner is."""
    score = 10 * (images[:, 0, :4, :4].mean(axis=(1, 2)) - 0.8)
    return np.stack([-score, score], axis=1).astype(np.float32)


def test_curves_tell_the_true_map_from_a_false_one() -> None:
    image = np.full((1, 1, 16, 16), -1, dtype=np.float32)
    image[..., :4, :4] = 1
    true = np.zeros((1, 16, 16))
    true[..., :4, :4] = 1
    false = np.rot90(true, 2, axes=(1, 2)).copy()
    classes = np.array([1])
    good = perturbation_curves(image, true, classes, sum_of_corner)
    bad = perturbation_curves(image, false, classes, sum_of_corner)
    assert area_under(good.deletion)[0] < area_under(bad.deletion)[0] - 0.3
    assert area_under(good.insertion)[0] > area_under(bad.insertion)[0] + 0.3
    assert good.aopc[0] > bad.aopc[0] + 0.3
    assert good.deletion[0, 0] == good.insertion[0, -1]
    assert good.deletion[0, -1] == pytest.approx(bad.deletion[0, -1])


def test_blur_keeps_constants_and_mass() -> None:
    assert np.allclose(blurred(np.full((1, 1, 9, 9), 0.3), 2.0), 0.3, atol=1e-6)
    spot = np.zeros((1, 1, 21, 21))
    spot[..., 10, 10] = 1
    soft = blurred(spot, 2.0)
    assert soft.sum() == pytest.approx(1, abs=1e-5)
    assert soft[0, 0, 10, 10] == pytest.approx(1 / (2 * np.pi * 4), rel=0.03)
    assert (blurred(spot, 0) == spot).all()


def test_pictures() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, 3, 16, 16))
    assert np.allclose(ssim(image, image), 1, atol=1e-6)
    assert (ssim(image, image + rng.normal(0, 0.5, image.shape)) < 0.95).all()
    assert np.allclose(mean_l1(image, image + 0.25), 0.25)
    difference = np.zeros((1, 1, 4, 4))
    difference[0, 0, 0] = 0.1
    difference[0, 0, 1] = 0.09
    assert changed_share(difference)[0] == 0.25
    curves = np.array([[0.0, 0.5, 1.0], [0.0, 0.6, 0.4], [0.3, 0.3, 0.3]])
    found = monotonicity(curves)
    assert found[0] == 1
    assert found[1] == pytest.approx(1 - 0.2 / 0.8)
    assert np.isnan(found[2])


def test_bootstrap_draws_groups() -> None:
    values = np.repeat([0.0, 1.0], 50)
    alone = bootstrap_mean(values, [f"{i:03}" for i in range(100)])
    together = bootstrap_mean(values, ["a"] * 50 + ["b"] * 50)
    assert alone.mean == together.mean == 0.5
    assert 0.38 < alone.low < 0.45 < 0.55 < alone.high < 0.62
    assert (together.low, together.high) == (0, 1)
    part = bootstrap_mean([1.0, np.nan, 3.0], ["a", "b", "c"])
    assert (part.mean, part.count) == (2, 2)
    assert bootstrap_mean([np.nan], ["a"]).count == 0
    assert bootstrap_mean(values, ["a"] * 100) == alone  # one group: images are drawn


def test_rank_correlation() -> None:
    maps = np.random.default_rng(0).uniform(size=(1, 8, 8))
    assert rank_correlation(maps, maps**3)[0] == pytest.approx(1)
    assert rank_correlation(maps, -maps)[0] == pytest.approx(-1)
    assert np.isnan(rank_correlation(maps, np.ones_like(maps))[0])


def test_a_weak_classifier_and_odd_classes_are_named_first() -> None:
    labels = np.repeat([0, 1], 50)
    accuracy, notes = judge_classifier(np.tile([0, 1], 50), labels, 2)
    assert accuracy == 0.5
    assert "not clearly better than chance" in notes[0]
    assert judge_classifier(labels, labels, 2) == (1.0, [])
    _, notes = judge_classifier(np.array([0] * 8 + [1]), np.array([0] * 8 + [1]), 3)
    text = " ".join(notes)
    for said in ("one image only in class 1", "1 of 3 classes", "unbalanced classes"):
        assert said in text
