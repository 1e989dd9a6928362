# SPDX-License-Identifier: Apache-2.0
"""Overlays and colour tables."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import cae_fast as cf
from cae_fast.colors import color_table, signed_rgb, to_rgb
from cae_fast.pictures import image_png


def test_zero_map_returns_the_image() -> None:
    image = np.linspace(-1, 1, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    shown = cf.overlay(image, np.zeros((4, 5)))
    assert shown.dtype == np.uint8
    assert shown.shape == (4, 5, 3)
    np.testing.assert_array_equal(shown, to_rgb(image))


def test_by_hand() -> None:
    # Mid-grey image, map 1, alpha 1: the last colour of the table; map 0.25 of alpha 1 has weight
    # sqrt(0.25) = 0.5 and the colour at a quarter of the table.
    table = np.array([[0, 0, 0], [100, 0, 0], [200, 0, 0], [0, 250, 0], [0, 0, 255]], np.uint8)
    image = np.zeros((1, 1, 3), np.float32)
    shown = cf.overlay(image, np.array([[1.0, 0.25, 0.0]]), alpha=1.0, colormap=table)
    np.testing.assert_array_equal(shown[0], [[0, 0, 255], [114, 64, 64], [128, 128, 128]])


def test_threshold_hides_what_is_below() -> None:
    image = np.full((3, 1, 2), -1.0)
    shown = cf.overlay(image, np.array([[0.5, 1.0]]), threshold=0.5)
    assert (shown[0, 0] == 0).all()
    assert shown[0, 1].max() > 0


def test_batch_equals_single_images() -> None:
    rng = np.random.default_rng(0)
    images, maps = rng.uniform(-1, 1, (3, 3, 8, 8)), rng.uniform(0, 1, (3, 8, 8))
    batch = cf.overlay(images, maps)
    for image, saliency, shown in zip(images, maps, batch, strict=True):
        np.testing.assert_array_equal(cf.overlay(image, saliency), shown)
    assert cf.overlay(images[:0], maps[:0]).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels(channels: int) -> None:
    image = np.full((channels, 2, 2), 1.0)
    assert (cf.overlay(image, np.zeros((2, 2))) == 255).all()


@given(
    hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(width=64)),
    hnp.arrays(np.float32, (1, 6, 8), elements=st.floats(width=32)),
)
def test_survives_any_numbers(maps: Any, image: Any) -> None:
    shown = cf.overlay(np.stack([image, image]), maps)
    assert shown.shape == (2, 6, 8, 3)


def test_resized_map_keeps_its_place() -> None:
    small = np.zeros((4, 4))
    small[1, 2] = 1.0
    shown = cf.overlay(np.full((1, 16, 16), -1.0), small).sum(axis=-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert row in range(4, 8)
    assert column in range(8, 12)
    assert not shown[12:].any()


def test_takes_every_kind_of_array() -> None:
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)
    saliency = rng.uniform(0, 1, (2, 8, 8)).astype(np.float32)
    wanted = cf.overlay(image, saliency)

    class Foreign:
        def __init__(self, array: Any) -> None:
            self.__dlpack__, self._device = array.__dlpack__, array.__dlpack_device__

        def __dlpack_device__(self) -> Any:
            return self._device()

    differentiable = torch.from_numpy(image).requires_grad_()
    for other in (differentiable, torch.from_numpy(image).double(), Foreign(image)):
        shown = cf.overlay(other, torch.from_numpy(saliency).requires_grad_())
        assert type(shown) is np.ndarray
        np.testing.assert_array_equal(shown, wanted)
    small = torch.from_numpy(image).to(torch.bfloat16)
    np.testing.assert_array_equal(cf.overlay(small, saliency), cf.overlay(small.float(), saliency))


def test_two_channels_look_the_same_everywhere() -> None:
    image = np.stack([np.full((4, 4), -1.0), np.full((4, 4), 1.0)]).astype(np.float32)
    with Image.open(io.BytesIO(image_png(image))) as opened:
        np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), to_rgb(image))
    assert (to_rgb(image) == 128).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "RGB"), (3, "RGB"), (4, "RGBA")])
def test_png_of_a_model_image(channels: int, mode: str) -> None:
    image = np.full((channels, 6, 3), np.nan, dtype=np.float32)
    with Image.open(io.BytesIO(image_png(image, longest_side=2))) as opened:
        assert (opened.mode, opened.size) == (mode, (1, 2))
        assert not np.asarray(opened).any()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"image": np.zeros((4, 4))}, "image"),
        ({"image": np.zeros((5, 4, 4))}, "C in 1..4"),
        ({"map": np.zeros((1, 4, 4))}, "map"),
        ({"map": np.zeros((0, 4))}, "no pixels"),
        ({"map": np.full((4, 4), "x")}, "map"),
        ({"image": None}, "image"),
        ({"image": np.zeros((2, 3, 4, 4)), "map": np.zeros((3, 4, 4))}, "map"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"threshold": 1.0}, "threshold"),
        ({"colormap": "jet"}, "inferno"),
        ({"colormap": np.zeros((4, 3))}, "uint8"),
    ],
)
def test_refusals_name_the_argument(arguments: dict[str, Any], word: str) -> None:
    call: dict[str, Any] = {"image": np.zeros((3, 4, 4)), "map": np.zeros((4, 4))} | arguments
    with pytest.raises(ValueError, match=word):
        cf.overlay(call.pop("image"), call.pop("map"), **call)


def test_ramp_rises_in_lightness() -> None:
    table = color_table("inferno").astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(table) > -0.5).all()
    assert table[0] < 5
    assert table[-1] > 230


def test_signed_zero_is_neutral_and_signs_differ() -> None:
    shown = signed_rgb(np.array([[[-1.0, 0.0, 1.0, np.nan]]]))[0].astype(int)
    assert np.ptp(shown[1]) == 0
    np.testing.assert_array_equal(shown[1], shown[3])
    assert shown[0, 2] > shown[0, 0]
    assert shown[2, 0] > shown[2, 2]
    assert np.ptp(signed_rgb(np.zeros((3, 2, 2)))) == 0
