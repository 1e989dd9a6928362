# SPDX-License-Identifier: Apache-2.0
"""From image differences to maps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from explain_cases import World, constant

import cae_fast as cf
from cae_fast import reference
from cae_fast.colors import to_rgb
from cae_fast.saliency import (
    difference_saliency,
    mean_saliency,
    path_saliency,
    resize_map,
    smooth_saliency,
)
from cae_fast.testing import random_images, toy_model


def test_a_case_worked_by_hand() -> None:
    a = np.array([[[[0.5, -1.0]], [[0.0, 1.0]]]], dtype=np.float32)
    b = np.array([[[[0.0, 0.0]], [[0.5, 0.0]]]], dtype=np.float32)
    difference, saliency = difference_saliency(a, b)
    assert difference.tolist() == [[[[0.5, -1.0]], [[-0.5, 1.0]]]]
    assert saliency.tolist() == [[[0.5, 1.0]]]


def test_equal_images_give_zeros() -> None:
    image = np.full((2, 3, 4, 4), 0.25, dtype=np.float32)
    difference, saliency = difference_saliency(image, image)
    assert not difference.any()
    assert not saliency.any()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (33, 3, 5, 7), (0, 1, 4, 4)])
def test_agrees_with_the_specification(shape: tuple[int, ...]) -> None:
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    difference, saliency = difference_saliency(a, b)
    assert saliency.shape == (shape[0], *shape[2:])
    np.testing.assert_array_equal(difference, a - b)
    if shape[0]:
        _, expected = reference.difference_saliency(
            torch.from_numpy(a).double(), torch.from_numpy(b).double()
        )
        np.testing.assert_allclose(saliency, expected, atol=1e-6)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape|must be"):
        difference_saliency(np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 4, 5), np.float32))


def test_resized_maps_stay_in_range_and_place() -> None:
    saliency = np.zeros((2, 4, 4), dtype=np.float32)
    saliency[0, 1, 2] = 1
    large = resize_map(saliency, 8, 16)
    assert large.shape == (2, 8, 16)
    assert np.unravel_index(large[0].argmax(), (8, 16)) in {(2, 9), (2, 10), (3, 9), (3, 10)}
    assert large.min() == 0
    assert large.max() <= 1
    assert not large[1].any()
    np.testing.assert_array_equal(resize_map(saliency, 4, 4), saliency)
    np.testing.assert_allclose(resize_map(saliency, 1, 1)[0], 1 / 16, atol=0.07)
    np.testing.assert_allclose(large.mean(), saliency.mean(), rtol=1e-6)
    spoilt = saliency.copy()
    spoilt[1, 0] = [np.nan, np.inf, -np.inf, -1]
    np.testing.assert_array_equal(resize_map(spoilt, 8, 16), large)
    np.testing.assert_array_equal(resize_map(np.ones((3, 5)), 7, 2), np.ones((7, 2)))


@pytest.mark.parametrize(
    ("shape", "height", "width"), [((4,), 2, 2), ((0, 4), 2, 2), ((4, 4), 0, 2), ((4, 4), 2, -1)]
)
def test_wrong_sizes(shape: tuple[int, ...], height: int, width: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        resize_map(np.zeros(shape), height, width)


def test_a_decoder_that_ignores_the_code() -> None:
    """Equal pictures all along the path: zeros, no division by them, and an overlay."""
    world = World(4)
    zeros = {
        name: np.zeros_like(weight) if name.startswith("modulation.linear2") else weight
        for name, weight in world.model.weights.items()
    }
    explainer = cf.Explainer(cf.CAE(world.model.config, zeros), constant([1, 0, 0]))
    found = explainer.explain(world.images, 1, world.ends)
    assert set(found.status) == {"not_flipped"}
    assert (found.difference == 0).all()
    assert (found.saliency == 0).all()
    shown = cf.overlay(found.images, found.saliency)
    np.testing.assert_array_equal(shown, to_rgb(world.images))
    assert "NaN" not in found.to_json()
    assert "nan" not in found._repr_html_()


class Brightening:
    """A backend whose decoder returns the image, brighter by the code: a constant difference."""

    name, device, dtype, precision = "stub", "cpu", "float32", "fp32"
    max_batch, coarse_batch = 4, None

    def encode(self, images: Any) -> tuple[Any, Any]:
        return images, np.zeros((len(images), 4), np.float32)

    def session(self, individual: Any, vertices: Any, grid: int) -> Any:
        gain = vertices[:, 1, 0, None, None, None] / np.float32(grid)

        def decode(index: Any, step: Any) -> Any:
            return individual[index] + gain[index] * step[:, None, None, None].astype(np.float32)

        return SimpleNamespace(decode=decode)


def test_a_constant_difference_is_a_map_of_ones() -> None:
    model = toy_model()
    image = random_images(model.config, 1) * np.float32(0.5)

    def bright(pictures: Any) -> Any:
        gain = pictures.mean(axis=(1, 2, 3)) - image.mean()
        return np.stack([np.zeros_like(gain), gain - 0.1, np.full_like(gain, -9)], axis=1)

    explainer = cf.Explainer(model, bright)
    explainer.backend = Brightening()  # type: ignore[assignment]
    found = explainer.explain(image, 1, np.full((1, 4), 0.25, np.float32))
    assert found.status.tolist() == ["flipped"]
    np.testing.assert_allclose(found.difference, 0.1, atol=2e-3)
    np.testing.assert_allclose(found.saliency, 1, atol=1e-5)
    assert cf.overlay(image, found.saliency).shape == (1, 16, 16, 3)


def test_smoothing_keeps_the_raw_map_its_place_and_its_range() -> None:
    raw = np.zeros((2, 15, 15), dtype=np.float32)
    raw[0, 4, 9] = 1
    before = raw.copy()
    soft = smooth_saliency(raw, 1.5)
    np.testing.assert_array_equal(raw, before)
    assert np.unravel_index(soft[0].argmax(), (15, 15)) == (4, 9)
    assert soft[0].max() == 1
    assert soft[0, 4, 10] == pytest.approx(np.exp(-0.5 / 1.5**2), rel=1e-5)  # one pixel off
    assert not soft[1].any()
    np.testing.assert_array_equal(smooth_saliency(raw, 0), raw)
    np.testing.assert_allclose(smooth_saliency(np.full((3, 4), 0.5), 9.0), 1, atol=1e-6)


def test_a_mean_by_hand_counts_what_flips() -> None:
    maps = np.array([[[[1.0, 0.0]], [[0.5, 1.0]], [[0.0, 1.0]]]] * 3)
    flipped = np.array([[True, True, False], [False, False, True], [False] * 3])
    mean = mean_saliency(maps, flipped)
    np.testing.assert_allclose(mean[:, 0], [[1, 2 / 3], [0, 1], [0, 0]], rtol=1e-6)


def test_a_path_by_hand_counts_what_changes_with_the_classifier() -> None:
    """Pixel 0 changes where the probability does not, pixel 1 with 0.6 of it, pixel 2 with 0.3."""
    steps = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, -0.5, 0.0], [1.0, -0.5, 1.0]]
    frames = np.array(steps)[None, :, None, None, :]
    weighted = path_saliency(frames, [[0.1, 0.1, 0.7, 0.4]])
    np.testing.assert_allclose(weighted[0, 0], [0, 1, 1], rtol=1e-6)  # 0.5 * 0.6 and 1 * 0.3
    both = np.concatenate([frames, frames], axis=2)  # channels add up, the maximum is 1 anyhow
    np.testing.assert_allclose(path_saliency(both, [[0.1, 0.1, 0.7, 0.4]]), weighted, rtol=1e-6)
    assert not path_saliency(frames, [[0.5] * 4]).any()
    backwards = path_saliency(frames[:, ::-1], [[0.4, 0.7, 0.1, 0.1]])
    np.testing.assert_allclose(backwards, weighted, rtol=1e-6)


def test_wrong_maps_and_paths_are_named() -> None:
    maps, frames = np.zeros((1, 2, 4, 4)), np.zeros((1, 3, 1, 4, 4))
    for call, says in (
        (lambda: smooth_saliency(maps, -1), "sigma must be"),
        (lambda: smooth_saliency(maps, float("nan")), "sigma must be"),
        (lambda: smooth_saliency(maps - 1, 1), "not negative"),
        (lambda: mean_saliency(maps, [[True]]), r"flipped \[N, k\]"),
        (lambda: path_saliency(frames, [[0.0, 1.0]]), r"probability \[N, T\]"),
        (lambda: path_saliency(frames[:, :1], [[0.0]]), "T >= 2"),
        (lambda: path_saliency(frames, [[0.0, 1.0, 2.0]]), r"in \[0, 1\]"),
        (lambda: path_saliency(frames * np.nan, [[0.0, 1.0, 1.0]]), "NaN"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
