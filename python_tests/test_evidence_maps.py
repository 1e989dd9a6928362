# SPDX-License-Identifier: Apache-2.0
"""What regions are worth to a classifier, by hand and on real digits."""

from __future__ import annotations

import numpy as np
import pytest
from explain_cases import digits_explainer

import cae_fast as cf
from cae_fast.digits import load
from cae_fast.evaluation.map_measures import area_under, perturbation_curves
from cae_fast.evidence_maps import evidence_maps, region_worth
from cae_fast.saliency import blurred

SIDE = 32


@pytest.fixture(scope="module")
def explainer() -> cf.Explainer:
    return digits_explainer(max_batch=8)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    pixels, _, test = load(SIDE)
    return (pixels[test][:6, None] / 127.5 - 1).astype(np.float32)


def test_worth_is_what_a_sum_of_pixels_says_it_is(images: np.ndarray) -> None:
    """A classifier that adds up pixels of one square: both differences are that sum's."""
    weights = np.zeros((SIDE, SIDE), dtype=np.float32)
    weights[8:16, 16:24] = 0.01

    def classify(batch: np.ndarray) -> np.ndarray:
        logits = np.full((len(batch), 10), -60.0, dtype=np.float32)
        logits[:, 0] = 0
        logits[:, 1] = 5 + (batch[:, 0] * weights).sum(axis=(1, 2))
        return logits

    explainer = digits_explainer(classify, max_batch=8)
    found = explainer.explain(images, target=0)
    assert (found.status == "not_flipped").all()
    evidence = evidence_maps(explainer, found).evidence
    sharp = images[:, 0] - blurred(images[:, 0], SIDE / 8)
    worth = (sharp * weights).sum(axis=(1, 2))
    # The square itself is one region; four of the other grid share its corners with 4 x 4 each.
    expected = np.zeros((len(images), SIDE, SIDE))
    expected[:, 8:16, 16:24] += worth[:, None, None]
    number = np.ones((SIDE, SIDE))
    number[4:28, 4:28] = 2
    for top in (4, 12):
        for left in (12, 20):
            part = slice(max(top, 8), min(top + 8, 16)), slice(max(left, 16), min(left + 8, 24))
            corner = (sharp[:, *part] * weights[part]).sum(axis=(1, 2))
            expected[:, top : top + 8, left : left + 8] += corner[:, None, None]
    expected = blurred((expected / number).astype(np.float32), SIDE / 24)
    # Quarters of the four squares of most worth: only those of one square are worth anything.
    by_square = expected.reshape(-1, 4, 8, 4, 8).mean(axis=(2, 4))
    best = np.argsort(-by_square.reshape(-1, 16), axis=1, kind="stable")[:, :4]
    quarters = np.zeros_like(expected)
    for top in (8, 12):
        for left in (16, 20):
            part = slice(top, top + 4), slice(left, left + 4)
            quarters[:, *part] = (sharp[:, *part] * weights[part]).sum(axis=(1, 2))[:, None, None]
    told = (best == 1 * 4 + 2).any(axis=1)
    assert 0 < told.sum() < len(images)
    expected += 2 * blurred(quarters, SIDE / 48) * told[:, None, None]
    np.testing.assert_allclose(evidence, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.05


def test_either_difference_counts_by_its_own_size() -> None:
    """One corner is missed by 1 when blurred, the other says 10 alone: to a map they are alike."""
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, SIDE, SIDE)).astype(np.float32)
    blank = blurred(image, SIDE / 8)

    def classify(batch: np.ndarray) -> np.ndarray:
        sharp = batch[:, 0] == image[0]
        asked = (sharp | (batch[:, 0] == blank[0])).all(axis=(1, 2))
        missed = 4 + sharp[:, :8, :8].mean(axis=(1, 2))
        alone = -9 + 10 * sharp[:, 24:, 24:].mean(axis=(1, 2))
        odds = np.where(sharp.mean(axis=(1, 2)) > 0.5, missed, alone)
        logits = np.full((len(batch), 10), -60.0, dtype=np.float32)
        logits[:, 0] = 0
        logits[:, 1] = np.where(asked, odds, 5)  # decoded images are of the class
        return logits

    explainer = digits_explainer(classify, max_batch=8)
    found = explainer.explain(image, target=0)
    assert list(found.status) == ["not_flipped"]
    evidence = evidence_maps(explainer, found).evidence[0]
    np.testing.assert_allclose(evidence, evidence[::-1, ::-1], atol=1e-5)
    assert evidence[2, 2] > 10 * np.abs(evidence[2, 29])
    worth, classified = region_worth(explainer, found, np.arange(1))
    np.testing.assert_allclose(worth[0, 29, 29] / worth[0, 2, 2], 10, rtol=1e-4)
    assert classified[0] == 52


def test_maps_weigh_the_change_and_put_what_speaks_against_last(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    found = explainer.explain(images)
    assert found.flipped.all()
    maps = evidence_maps(explainer, found)
    assert (maps.classified == 84).all()
    np.testing.assert_allclose(maps.saliency.max(axis=(1, 2)), 1)
    assert maps.saliency.min() >= 0
    for one, worth in zip(maps.saliency, maps.evidence, strict=True):
        assert one[worth < 0].max() <= 1e-3
        assert one[worth > worth.max() / 2].mean() > 5 * one[worth < worth.max() / 4].mean()


def test_what_the_map_names_is_what_the_classifier_misses(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    """Blurred away in the map's order, the class is lost sooner than in the difference's."""
    found = explainer.explain(images)

    def area(maps: np.ndarray) -> float:
        curves = perturbation_curves(images, maps, found.source_class, explainer.classifier)
        return float(area_under(curves.deletion).mean())

    assert area(evidence_maps(explainer, found).saliency) < area(found.saliency) - 0.1


def test_images_that_were_not_searched_keep_their_maps(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    broken = images[:2].copy()
    broken[1] = np.nan
    source = int(explainer.classifier(images[:1]).argmax())
    found = explainer.explain(broken, target=source)
    assert list(found.status) == ["already_target", "rejected"]
    maps = evidence_maps(explainer, found)
    np.testing.assert_array_equal(maps.saliency, found.saliency)
    assert not maps.evidence.any()
    assert not maps.classified.any()
    assert evidence_maps(explainer, found[:0]).saliency.shape == (0, SIDE, SIDE)
