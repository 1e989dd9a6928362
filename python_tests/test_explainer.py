# SPDX-License-Identifier: Apache-2.0
"""Explaining: every field, every status, every kind of exemplar."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from explain_cases import (
    FIELDS,
    OTHER,
    SOURCE,
    TARGET,
    World,
    assert_same,
    bank_of_rows,
    constant,
)

import cae_fast as cf
from cae_fast.manifold.choice import reliable_rows


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def flipped(world: World) -> cf.Explanation:
    return world.explainer().explain(world.images, target=TARGET, exemplars=world.ends)


def test_fields_of_flipped_images(world: World, flipped: cf.Explanation) -> None:
    n, shape = len(world.images), world.images.shape
    assert flipped.status.tolist() == ["flipped"] * n
    assert flipped.flipped.all()
    assert len(flipped) == n
    assert flipped.counterfactual.shape == flipped.reconstruction.shape == shape
    assert flipped.difference.shape == shape
    assert flipped.saliency.shape == (n, *shape[2:])
    assert flipped.bracket.shape == (n, 2)
    assert flipped.logits_source.shape == flipped.logits_counterfactual.shape == (n, 3)
    assert flipped.exemplar.tolist() == [[-1]] * n
    assert (flipped.source_class == SOURCE).all()
    assert (flipped.target_class == TARGET).all()
    assert (flipped.reached_class == TARGET).all()
    for name in ("counterfactual", "reconstruction", "difference", "saliency", "t_flip", "bracket"):
        assert getattr(flipped, name).dtype == np.float32
    assert flipped.names == [f"image {i}" for i in range(n)]
    assert flipped.class_names == ("0", "1", "2")


def test_flip_is_bracketed_on_the_grid(world: World, flipped: cf.Explanation) -> None:
    np.testing.assert_array_equal(flipped.t_flip, flipped.bracket[:, 1])
    np.testing.assert_array_equal(flipped.bracket[:, 1] - flipped.bracket[:, 0], 1 / 256)
    explainer = world.explainer()
    for i in range(len(flipped)):
        frames = explainer.path(world.images[i : i + 1], world.ends[i : i + 1], flipped.bracket[i])[
            0
        ]
        before, after = world.classifier(frames).argmax(axis=1)
        assert (before, after) == (SOURCE, TARGET)


def test_flip_is_what_trying_every_grid_point_finds(world: World, flipped: cf.Explanation) -> None:
    explainer = world.explainer()
    t = np.arange(257) / 256
    for i in range(3):
        frames = explainer.path(world.images[i : i + 1], world.ends[i : i + 1], t)[0]
        hits = world.classifier(frames).argmax(axis=1) == TARGET
        coarse = next(step for step in range(0, 257, 64) if hits[step])
        first = round(float(flipped.t_flip[i]) * 256)
        assert coarse - 64 < first <= coarse
        assert hits[first]
        assert not hits[first - 1]


def test_images_are_those_of_the_path(world: World, flipped: cf.Explanation) -> None:
    explainer = world.explainer()
    for i in range(len(flipped)):
        t = [0.0, float(flipped.t_flip[i])]
        start, end = explainer.path(world.images[i : i + 1], world.ends[i : i + 1], t)[0]
        np.testing.assert_array_equal(flipped.reconstruction[i], start)
        np.testing.assert_array_equal(flipped.counterfactual[i], end)
    logits = world.classifier(flipped.counterfactual)
    np.testing.assert_array_equal(flipped.logits_counterfactual, logits)
    np.testing.assert_array_equal(flipped.logits_source, world.classifier(world.images))


def test_difference_and_saliency(flipped: cf.Explanation) -> None:
    np.testing.assert_array_equal(
        flipped.difference, flipped.counterfactual - flipped.reconstruction
    )
    magnitude = np.abs(flipped.difference).sum(axis=1)
    expected = magnitude / magnitude.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(flipped.saliency, expected, atol=1e-6)
    assert (flipped.saliency.max(axis=(1, 2)) == 1).all()


def test_path_lists_every_point_classified(flipped: cf.Explanation) -> None:
    for i in range(len(flipped)):
        t, logits = flipped.path_t[i], flipped.path_logits[i]
        assert (np.diff(t) > 0).all()
        assert len(t) == len(logits) == flipped.evaluations[i]
        coarse = np.ceil(4 * flipped.t_flip[i]) / 4  # the first coarse point that flips
        assert {t for t in (0.0, 0.25, 0.5, 0.75, 1.0) if t <= coarse} <= set(t.tolist())
        assert t.max() == coarse
        at = int(np.flatnonzero(t == flipped.t_flip[i])[0])
        np.testing.assert_array_equal(logits[at], flipped.logits_counterfactual[i])
    # Coarse points up to the first that flips; 64 steps between two of them: six bisections.
    np.testing.assert_array_equal(flipped.evaluations, np.ceil(4 * flipped.t_flip) + 1 + 6)


def test_a_scan_in_one_batch_finds_the_same(world: World, flipped: cf.Explanation) -> None:
    explainer = world.explainer()
    explainer.backend.coarse_batch = None
    found = explainer.explain(world.images, TARGET, world.ends)
    assert (found.evaluations == 5 + 6).all()
    assert all({0.0, 0.25, 0.5, 0.75, 1.0} <= set(t.tolist()) for t in found.path_t)
    for name in FIELDS:
        if name != "evaluations":
            np.testing.assert_array_equal(getattr(found, name), getattr(flipped, name))


@pytest.mark.parametrize("min_probability", [0.0, 0.8])
def test_search_by_the_margin(world: World, min_probability: float) -> None:
    explainer = world.explainer()
    wanted = explainer.explain(world.images, TARGET, world.ends, min_probability=min_probability)
    found = explainer.explain(
        world.images, TARGET, world.ends, min_probability=min_probability, search="margin"
    )
    assert set(found.status) == {"flipped"}
    for name in FIELDS:
        if name != "evaluations":
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert (found.evaluations <= wanted.evaluations + 1).all()
    assert found.evaluations.mean() < wanted.evaluations.mean() - 2
    assert found.meta["parameters"]["search"] == "margin"
    assert wanted.meta["parameters"]["search"] == "bisection"


def test_meta(world: World, flipped: cf.Explanation) -> None:
    meta = flipped.meta
    assert meta["version"] == cf.__version__
    assert meta["model_sha256"] == world.model.sha256
    assert meta["bank_sha256"] is None
    assert (meta["backend"], meta["device"], meta["dtype"]) == ("cpu", "cpu", "float32")
    assert meta["precision"] == "fp32"
    assert meta["parameters"]["grid"] == 256
    assert meta["rejected"] == {}
    assert {"encode", "decode", "classify", "saliency", "total"} <= set(meta["seconds"])
    assert "PathClassifier" in meta["classifier"]


@pytest.mark.parametrize(
    ("tolerance", "grid"), [(1, 1), (0.5, 2), (0.3, 4), (0.004, 256), (1 / 1000, 1024)]
)
def test_tolerance_is_the_width_of_the_bracket(world: World, tolerance: float, grid: int) -> None:
    found = world.explainer().explain(world.images[:2], TARGET, world.ends[:2], tolerance=tolerance)
    assert found.meta["parameters"]["grid"] == grid
    np.testing.assert_allclose(found.bracket[:, 1] - found.bracket[:, 0], 1 / grid)


def test_not_flipped_reports_the_nearest_point(world: World) -> None:
    def stubborn(images: Any) -> Any:
        logits = world.classifier(images)
        logits[:, SOURCE] += 100
        return logits

    found = world.explainer(stubborn).explain(world.images, TARGET, world.ends)
    assert set(found.status) == {"not_flipped"}
    assert not found.flipped.any()
    assert np.isnan(found.t_flip).all()
    assert np.isnan(found.bracket).all()
    assert (found.reached_class == SOURCE).all()
    for i in range(len(found)):
        best = found.path_logits[i][:, TARGET].argmax()
        np.testing.assert_array_equal(found.logits_counterfactual[i], found.path_logits[i][best])
    assert (found.saliency.max(axis=(1, 2)) == 1).all()


def test_constant_classifier_never_flips(world: World) -> None:
    found = world.explainer(constant([1, 0, 0])).explain(world.images, exemplars=world.ends)
    assert set(found.status) == {"not_flipped"}
    assert (found.target_class == 1).all()
    np.testing.assert_array_equal(found.counterfactual, found.reconstruction)  # lowest step on ties
    assert (found.saliency == 0).all()


def test_already_target(world: World) -> None:
    found = world.explainer().explain(world.images, SOURCE, world.ends)
    assert set(found.status) == {"already_target"}
    np.testing.assert_array_equal(found.counterfactual, world.images)
    np.testing.assert_array_equal(found.logits_counterfactual, found.logits_source)
    assert (found.reached_class == SOURCE).all()
    assert np.isfinite(found.reconstruction).all()
    assert (found.saliency == 0).all()
    assert (found.difference == 0).all()
    assert np.isnan(found.t_flip).all()
    assert all(len(t) == 0 for t in found.path_t)
    assert (found.evaluations == 1).all()


def test_reconstruction_flips(world: World) -> None:
    early = World(flip=-0.5)
    found = early.explainer().explain(early.images, TARGET, early.ends)
    assert set(found.status) == {"reconstruction_flips"}
    np.testing.assert_array_equal(found.counterfactual, found.reconstruction)
    np.testing.assert_array_equal(found.difference, found.reconstruction - early.images)
    assert (found.saliency.max(axis=(1, 2)) == 1).all()
    assert np.isnan(found.t_flip).all()
    assert (found.reached_class == TARGET).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_of_the_image(world: World, bad: float) -> None:
    def poisoned(images: Any) -> Any:
        logits = world.classifier(images)
        same = np.abs(images - world.images[3]).max(axis=(1, 2, 3)) == 0
        logits[same, 1] = bad
        return logits

    found = world.explainer(poisoned).explain(world.images, TARGET, world.ends)
    assert found.status[3] == "non_finite"
    assert (np.delete(found.status, 3) == "flipped").all()
    assert found.source_class[3] == found.reached_class[3] == -1
    assert np.isnan(found.counterfactual[3]).all()
    assert (found.saliency[3] == 0).all()
    assert found.evaluations[3] == 0


def test_non_finite_logits_on_the_path(world: World) -> None:
    def poisoned(images: Any) -> Any:
        logits = world.classifier(images)
        logits[(logits[:, 0] == 0) & (logits[:, 1] > 0)] = np.nan
        return logits

    found = world.explainer(poisoned).explain(world.images, TARGET, world.ends)
    assert set(found.status) == {"non_finite"}
    assert (found.source_class == SOURCE).all()
    assert (found.reached_class == -1).all()
    assert np.isfinite(found.reconstruction).all()
    assert np.isnan(found.counterfactual).all()
    assert (found.saliency == 0).all()
    json.loads(found.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -1.01])
def test_a_bad_image_is_rejected_alone(world: World, bad: float) -> None:
    images = world.images[:8].copy()
    images[5, 0, 3, 3] = bad
    explainer = world.explainer(max_batch=4)
    found = explainer.explain(images, TARGET, world.ends[:8])
    clean = explainer.explain(world.images[:8], TARGET, world.ends[:8])
    others = [0, 1, 2, 3, 4, 6, 7]
    assert_same(found[others], clean[others])
    row = found[5]
    assert row.status[0] == "rejected"
    assert row.source_class[0] == row.target_class[0] == row.reached_class[0] == -1
    assert (row.saliency == 0).all()
    assert np.isnan(row.logits_source).all()
    assert np.isnan(row.counterfactual).all()
    assert row.evaluations[0] == 0
    assert "pixels" in row.meta["rejected"][0]
    assert list(found.meta["rejected"]) == [5]


def test_images_refused_before(world: World) -> None:
    reasons = [None, "not an image", None]
    found = world.explainer().explain(world.images[:3], TARGET, world.ends[:3], rejected=reasons)
    assert found.status.tolist() == ["flipped", "rejected", "flipped"]
    assert found.meta["rejected"] == {1: "not an image"}
    nothing = world.explainer().explain(world.images[:1], TARGET, world.ends[:1], rejected=["x"])
    assert nothing.status.tolist() == ["rejected"]


def test_any_target_is_leaving_the_source_class(world: World) -> None:
    found = world.explainer().explain(world.images, "any", world.ends)
    assert set(found.status) == {"flipped"}
    assert (found.target_class == -1).all()
    assert (found.reached_class == TARGET).all()


def test_minimum_probability_moves_the_flip(world: World, flipped: cf.Explanation) -> None:
    sure = world.explainer().explain(world.images, TARGET, world.ends, min_probability=0.9)
    assert set(sure.status) == {"flipped"}
    assert (sure.t_flip > flipped.t_flip).all()
    z = sure.logits_counterfactual.astype(np.float64)
    probability = np.exp(z[:, TARGET]) / np.exp(z).sum(axis=1)
    assert (probability >= 0.9).all()


def test_default_target_is_the_runner_up(world: World) -> None:
    found = world.explainer(constant([0.5, 1.0, 0.7])).explain(world.images, exemplars=world.ends)
    assert (found.source_class == 1).all()
    assert (found.target_class == OTHER).all()
    tied = world.explainer(constant([0.5, 1.0, 0.5])).explain(world.images, exemplars=world.ends)
    assert (tied.target_class == 0).all()


def test_default_target_of_two_classes_is_the_other() -> None:
    two = World(2, num_classes=2)
    found = two.explainer().explain(two.images, exemplars=two.ends)
    assert (found.target_class == 1).all()


def test_targets_per_image(world: World) -> None:
    explainer = world.explainer()
    wish: list[Any] = [SOURCE, TARGET, None, "any", "1"]
    found = explainer.explain(world.images[:5], wish, world.ends[:5])
    assert found.target_class.tolist() == [0, 1, 1, -1, 1]
    assert found.status.tolist() == ["already_target"] + ["flipped"] * 4
    for kind in (np.array([0, 1]), torch.tensor([0, 1]), (0, np.int64(1))):
        found = explainer.explain(world.images[:2], kind, world.ends[:2])
        assert found.target_class.tolist() == [0, 1]


def test_exemplars_as_images_codes_and_codes_of_an_object(world: World) -> None:
    explainer = world.explainer(constant([1, 0, 0]))
    codes = explainer.encode(world.images)
    by_images = explainer.explain(world.images, 1, world.images[::-1])
    by_codes = explainer.explain(world.images, 1, codes.class_code[::-1])
    by_object = explainer.explain(world.images[:1], 1, explainer.encode(world.images[-1:]))
    assert_same(by_images, by_codes)
    assert_same(by_images[0], by_object)
    one = explainer.explain(world.images, 1, world.images[:1])
    assert_same(one, explainer.explain(world.images, 1, np.repeat(codes.class_code[:1], 9, 0)))
    # An image as its own exemplar is a path of one point.
    itself = explainer.explain(world.images, 1, world.images)
    np.testing.assert_array_equal(itself.counterfactual, itself.reconstruction)


def test_exemplars_from_the_bank(world: World) -> None:
    bank = world.bank()
    explainer = world.explainer(constant([1, 0.5, 0]), bank=bank)
    codes = explainer.encode(world.images).class_code
    # 9 rows of a class, so a quarter of that by default, among the reliable ones.
    default = bank.nearest(codes, 1, 2, among=reliable_rows(bank, 2))
    np.testing.assert_array_equal(explainer.explain(world.images).exemplar, default)
    found = explainer.explain(world.images, exemplars="nearest", k=1, second_try=False)
    np.testing.assert_array_equal(found.exemplar, bank.nearest(codes, 1))
    assert set(bank.labels[found.exemplar[:, 0]]) == {1}
    assert found.exemplar_names[2] == (bank.names[found.exemplar[2, 0]],)
    assert found.meta["bank_sha256"] == bank.sha256
    assert_same(found[:1], explainer.explain(world.images[:1], exemplars=found.exemplar[:1]))
    flat = explainer.explain(world.images, exemplars=found.exemplar[:, 0])
    assert_same(found, flat)
    anything = explainer.explain(world.images, "any")
    assert 0 not in bank.labels[anything.exemplar]
    already = explainer.explain(world.images, 0)
    assert (already.exemplar == -1).all()


def without_class(bank: cf.CodeBank, missing: int, left: int = 0) -> cf.CodeBank:
    """The bank with only `left` usable rows of a class."""
    usable = np.flatnonzero(bank.usable & (bank.labels == missing))
    rows = np.setdiff1d(np.arange(len(bank)), usable[left:])
    return bank_of_rows(bank, rows)


def test_default_target_is_a_class_that_the_bank_has(world: World) -> None:
    def moody(images: Any) -> Any:  # the runner-up of the fifth image is class 1, of all others 2
        same = [np.array_equal(image, world.images[4]) for image in np.asarray(images)]
        return [[2.0, 1.0, 0.5] if found else [2.0, 0.5, 1.0] for found in same]

    bank = without_class(world.bank(), 1)
    assert 1 in bank.labels  # rows that the classifier got wrong are no exemplars
    found = world.explainer(moody, bank=bank).explain(world.images)
    assert (found.target_class == 2).all()
    assert (bank.labels[found.exemplar[:, 0]] == 2).all()
    full = world.explainer(moody, bank=world.bank()).explain(world.images)
    assert full.target_class.tolist() == [2, 2, 2, 2, 1, 2, 2, 2, 2]
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_array_equal(found.saliency[others], full.saliency[others])
    # Two rows are needed for k = 2; what is given needs no bank; what is named is not replaced.
    scarce = world.explainer(moody, bank=without_class(world.bank(), 1, left=1))
    assert scarce.explain(world.images).target_class[4] == 1
    assert scarce.explain(world.images, k=2).target_class[4] == 2
    assert scarce.explain(world.images, exemplars=world.ends).target_class[4] == 1
    with pytest.raises(cf.BankError, match="class '1'"):
        scarce.explain(world.images, ["any"] * 8 + [1], k=2)
    alone = without_class(bank, 2)
    with pytest.raises(cf.BankError, match="0 correctly classified images of class '2'"):
        world.explainer(moody, bank=alone).explain(world.images[:2])


def test_several_exemplars_are_averaged(world: World) -> None:
    bank = world.bank()
    explainer = world.explainer(constant([1, 0.5, 0]), bank=bank)
    found = explainer.explain(world.images, k=3, second_try=False)
    assert found.exemplar.shape == (9, 3)
    mean = bank.codes[found.exemplar].mean(axis=1)
    given = explainer.explain(world.images, exemplars=mean)
    np.testing.assert_allclose(found.counterfactual, given.counterfactual, atol=1e-5)
    assert_same(found, explainer.explain(world.images, exemplars=found.exemplar))
