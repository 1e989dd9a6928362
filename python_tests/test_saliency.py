# SPDX-License-Identifier: Apache-2.0
"""From image differences to maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cae_fast import reference
from cae_fast.saliency import difference_saliency, resize_map


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
