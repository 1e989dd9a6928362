# SPDX-License-Identifier: Apache-2.0
"""Arrays as images: layouts, dtypes, views, ranges; wrong arguments of `load_images`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cae_fast.images import load_images, to_uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_array_layouts(dtype: type) -> None:
    highest = np.iinfo(dtype).max
    values = np.array([[0, highest]], dtype)
    np.testing.assert_array_equal(load_images(values), [[[[-1, 1]]]])
    colour = np.stack([values, values, values[:, ::-1]], axis=-1)
    np.testing.assert_array_equal(load_images(colour)[0, :, 0, 0], [-1, -1, 1])
    batch = np.stack([colour] * 5)
    assert load_images(batch).shape == (5, 3, 1, 2)
    swapped = values.astype(values.dtype.newbyteorder())
    np.testing.assert_array_equal(load_images(swapped), load_images(values))


def test_float_arrays_pass_unchanged() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 2, 6, 5)).astype(np.float32)
    loaded = load_images(images)
    np.testing.assert_array_equal(loaded, images)
    assert not np.shares_memory(loaded, images)
    np.testing.assert_array_equal(load_images(images.astype(np.float64)), images)
    np.testing.assert_array_equal(load_images(images[0]), images[:1])
    np.testing.assert_array_equal(load_images(images[0, 0]), images[:1, :1])
    assert load_images(images.astype(np.float16)).dtype == np.float32


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4)),
    st.booleans(),
    st.booleans(),
)
def test_uint8_round_trip_of_any_view(batch: np.ndarray, flip: bool, transpose: bool) -> None:
    view = batch[::-1, ::-1] if flip else batch
    view = view.transpose(0, 2, 1, 3) if transpose else view
    view.setflags(write=False)
    loaded = load_images(view)
    assert loaded.flags.c_contiguous
    assert loaded.flags.writeable
    np.testing.assert_array_equal(to_uint8(loaded), view)


BAD_ARRAYS = {
    "int64": (np.zeros((4, 4), np.int64), "must be uint8, uint16 or floating, got int64"),
    "bool": (np.zeros((4, 4), bool), "got bool"),
    "complex": (np.zeros((4, 4), complex), "got complex128"),
    "object": (np.array([[None]]), "got object"),
    "rank 1": (np.zeros(4, np.uint8), r"got shape \(4,\)"),
    "rank 5": (np.zeros((1, 1, 4, 4, 3), np.uint8), r"got shape"),
    "channels first": (np.zeros((3, 16, 16), np.uint8), r"\[H, W, C\] .* got shape \(3, 16, 16\)"),
    "channels last": (np.zeros((16, 16, 3)), r"\[C, H, W\] .* got shape \(16, 16, 3\)"),
    "no image": (np.zeros((0, 4, 4, 3), np.uint8), r"holds no images: .* \(0, 4, 4, 3\)"),
    "no pixel": (np.zeros((0, 4), np.uint8), "not empty"),
    "NaN": (np.full((4, 4), np.nan), "NaN or infinite"),
    "infinite": (np.full((4, 4), np.inf), "NaN or infinite"),
    "0 to 255": (np.full((4, 4), 255.0), r"in \[-1, 1\], got \[255, 255\] .* as uint8"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str) -> None:
    array, text = BAD_ARRAYS[case]
    with pytest.raises(ValueError, match=text):
        load_images(array)


@pytest.mark.parametrize("source", [None, 3, {"a": 1}, [], [[]], [3.5], object()])
def test_bad_sources(source: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a path|holds no images"):
        load_images(source)


@pytest.mark.parametrize(
    "options",
    [
        *({"size": size} for size in (0, -4, 2.0, True, "64", 10**6)),
        *({"channels": channels} for channels in (0, 5, "3")),
        *({"max_pixels": cap} for cap in (0, None)),
        {"fit": "squash"},
        {"on_error": "ignore"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must be"):
        load_images(np.zeros((4, 4), np.uint8), **options)
