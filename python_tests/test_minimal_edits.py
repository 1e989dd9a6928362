# SPDX-License-Identifier: Apache-2.0
"""Minimal edits of real digits, checked by asking the classifier again."""

from __future__ import annotations

import numpy as np
import pytest
from explain_cases import digits_explainer

import cae_fast as cf
from cae_fast.digits import load
from cae_fast.minimal_edits import minimal_edits


@pytest.fixture(scope="module")
def explainer() -> cf.Explainer:
    return digits_explainer()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    pixels, _, test = load(32)
    return (pixels[test][:8, None] / 127.5 - 1).astype(np.float32)


def test_an_edit_changes_the_class_and_nothing_else(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    found = explainer.explain(images)
    edits = minimal_edits(explainer, found)
    np.testing.assert_array_equal(edits.flipped, found.status == "flipped")
    assert edits.flipped.sum() >= 6
    for i in np.flatnonzero(edits.flipped):
        kept = ~edits.edit[i]
        np.testing.assert_array_equal(edits.images[i][:, kept], images[i][:, kept])
        assert explainer.classifier(edits.images[i : i + 1]).argmax() == found.reached_class[i]
        assert 0 < edits.edit[i].mean() < 0.5
        assert edits.saliency[i][edits.edit[i]].min() > edits.saliency[i][kept].max()
        assert edits.saliency[i].max() == 1
    assert edits.edit.mean() < 0.25  # a digit's counterfactual changes 40 % of the pixels
    assert (edits.classified[edits.flipped] == 13 + 52).all()


def test_fewer_pixels_do_not_change_the_class(explainer: cf.Explainer, images: np.ndarray) -> None:
    found = explainer.explain(images)
    edits = minimal_edits(explainer, found)
    for i in np.flatnonzero(edits.flipped):
        inside = np.argwhere(edits.edit[i])
        if len(inside) < 20:
            continue
        weak = inside[np.argsort(edits.saliency[i][edits.edit[i]])][: max(1, len(inside) // 50)]
        fewer = edits.images[i : i + 1].copy()
        fewer[0, :, weak[:, 0], weak[:, 1]] = images[i][:, weak[:, 0], weak[:, 1]].T
        assert explainer.classifier(fewer).argmax() != found.reached_class[i]


def test_what_did_not_flip_is_left_as_it_is(explainer: cf.Explainer, images: np.ndarray) -> None:
    broken = images[:2].copy()
    broken[1] = np.nan
    found = explainer.explain(broken, min_probability=1.0)
    assert not found.flipped.any()
    edits = minimal_edits(explainer, found)
    for unchanged in (edits.flipped, edits.edit, edits.classified):
        assert not unchanged.any()
    np.testing.assert_array_equal(edits.images[0], images[0])
    np.testing.assert_array_equal(edits.saliency, found.saliency)


def test_a_probability_asked_for_holds_for_the_edit(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    found = explainer.explain(images, min_probability=0.9)
    edits = minimal_edits(explainer, found)
    rows = np.flatnonzero(edits.flipped)
    logits = explainer.classifier(edits.images[rows]).astype(np.float64)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert len(rows) >= 4
    assert (chance[np.arange(len(rows)), found.reached_class[rows]] >= 0.9 - 1e-9).all()


def test_exemplars_that_were_given_edit_towards_the_counterfactual(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    found = explainer.explain(images, exemplars=images[::-1].copy(), target="any")
    edits = minimal_edits(explainer, found)
    np.testing.assert_array_equal(edits.flipped, found.flipped)
    assert edits.flipped.sum() >= 2
    changed = np.broadcast_to(edits.edit[:, None], images.shape)
    donor = np.clip(found.counterfactual, -1, 1)
    np.testing.assert_array_equal(edits.images[changed], donor[changed])


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), True])
def test_a_sigma_out_of_range_is_refused(
    explainer: cf.Explainer, images: np.ndarray, sigma: float
) -> None:
    with pytest.raises(ValueError, match="sigma must be"):
        minimal_edits(explainer, explainer.explain(images[:1]), sigma)
