# SPDX-License-Identifier: Apache-2.0
"""The native operations against the specification in float64, by hand, and by their properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_fast import ops
from cae_fast.testing import TOLERANCE, relative_error

torch = pytest.importorskip("torch")
reference = pytest.importorskip("cae_fast.reference")

ROUNDING = 2e-7
"""Relative error of one or two float32 operations."""


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(array: np.ndarray) -> Any:
    return torch.from_numpy(array.astype(np.float64))


# -- lerp_codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (33, 8), (7, 9)])
def test_lerp_codes_agrees_with_reference(shape: tuple[int, int]) -> None:
    start, end = normal(shape), normal(shape, 1)
    t = np.random.default_rng(2).uniform(0, 1, shape[0]).astype(np.float32)
    expected = reference.lerp_codes(exact(start), exact(end), exact(t)).numpy()
    value = ops.lerp_codes(start, end, t)
    assert value.shape == shape
    assert value.dtype == np.float32
    assert relative_error(value, expected) < ROUNDING


def test_lerp_codes_by_hand() -> None:
    value = ops.lerp_codes(
        np.float32([[0, 4], [1, 1]]), np.float32([[8, 0], [3, 5]]), np.float32([0.25, 0.5])
    )
    np.testing.assert_array_equal(value, [[2, 3], [2, 3]])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_lerp_codes_is_exact_at_both_ends(ends: list[float]) -> None:
    start, end = np.float32([[ends[0]]]), np.float32([[ends[1]]])
    assert ops.lerp_codes(start, end, np.float32([0]))[0, 0] == start[0, 0]
    assert ops.lerp_codes(start, end, np.float32([1]))[0, 0] == end[0, 0]


# -- path_codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vertex_count", [1, 2, 3, 6])
@pytest.mark.parametrize("points", [0, 1, 33])
def test_path_codes_agrees_with_reference(vertex_count: int, points: int) -> None:
    grid = 64
    generator = np.random.default_rng(3)
    vertices = normal((5, vertex_count, 4))
    index = generator.integers(0, 5, points).astype(np.int32)
    step = generator.integers(0, grid + 1, points).astype(np.int32)
    expected = reference.path_codes(
        exact(vertices), torch.from_numpy(index), torch.from_numpy(step), grid
    ).numpy()
    value = ops.path_codes(vertices, index, step, grid=grid)
    assert value.shape == (points, 4)
    assert relative_error(value, expected) < ROUNDING


def test_path_codes_by_hand() -> None:
    """Segments of length 3 and 1: half of the arc length lies two thirds along the first."""
    vertices = np.float32([[[0, 0], [3, 0], [3, 1]]])
    value = ops.path_codes(vertices, np.zeros(5, np.int32), np.arange(5, dtype=np.int32), grid=4)
    np.testing.assert_array_equal(value, [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]])


def test_path_codes_of_a_line_equals_lerp_codes() -> None:
    vertices = normal((1, 2, 8))
    grid = 256
    step = np.arange(grid + 1, dtype=np.int32)
    t = (step / grid).astype(np.float32)
    line = ops.path_codes(vertices, np.zeros_like(step), step, grid=grid)
    start, end = (np.repeat(vertices[:, i], grid + 1, axis=0) for i in range(2))
    np.testing.assert_array_equal(line, ops.lerp_codes(start, end, t))
    np.testing.assert_array_equal(line[[0, -1]], vertices[0])


@pytest.mark.parametrize("vertex_count", [1, 2, 4])
def test_path_of_length_zero_stays_at_its_first_vertex(vertex_count: int) -> None:
    vertex = normal((1, 1, 3))
    vertices = np.repeat(vertex, vertex_count, axis=1)
    value = ops.path_codes(vertices, np.zeros(3, np.int32), np.array([0, 3, 8], np.int32), grid=8)
    np.testing.assert_array_equal(value, np.repeat(vertex[0], 3, axis=0))


def test_path_codes_skips_repeated_vertices() -> None:
    vertices = np.float32([[[0], [0], [4], [4]]])
    steps = np.arange(5, dtype=np.int32)
    value = ops.path_codes(vertices, np.zeros_like(steps), steps, grid=4)
    np.testing.assert_array_equal(value[:, 0], [0, 1, 2, 3, 4])


# -- difference_saliency ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (5, 3, 7, 9), (33, 4, 16, 16)])
def test_difference_saliency_agrees_with_reference(shape: tuple[int, ...]) -> None:
    a, b = normal(shape), normal(shape, 1)
    difference, saliency = ops.difference_saliency(a, b)
    assert difference.shape == shape
    assert saliency.shape == (shape[0], *shape[2:])
    if shape[0]:
        expected = reference.difference_saliency(exact(a), exact(b))
        assert relative_error(difference, expected[0].numpy()) < TOLERANCE["cpu"]
        assert relative_error(saliency, expected[1].numpy()) < TOLERANCE["cpu"]
        assert (saliency.max(axis=(1, 2)) == 1).all()


def test_difference_saliency_by_hand() -> None:
    a = np.float32([[[[1, 0]], [[0, 2]]]])
    b = np.float32([[[[0, 0]], [[3, 0]]]])
    difference, saliency = ops.difference_saliency(a, b)
    np.testing.assert_array_equal(difference, [[[[1, 0]], [[-3, 2]]]])
    np.testing.assert_array_equal(saliency, [[[1, 0.5]]])


def test_saliency_of_equal_images_is_zero() -> None:
    images = normal((2, 3, 4, 4))
    difference, saliency = ops.difference_saliency(images, images)
    assert not difference.any()
    assert not saliency.any()


def test_saliency_of_a_broken_image_is_zero_and_its_neighbours_are_whole() -> None:
    a, b = normal((3, 1, 4, 4)), normal((3, 1, 4, 4), 1)
    clean = ops.difference_saliency(a, b)[1]
    a[1, 0, 2, 2] = np.nan
    saliency = ops.difference_saliency(a, b)[1]
    assert not saliency[1].any()
    np.testing.assert_array_equal(saliency[[0, 2]], clean[[0, 2]])


# -- errors -------------------------------------------------------------------------------------

CODES = normal((3, 4))
T = np.zeros(3, np.float32)
LINES = normal((2, 3, 4))
INDEX = np.zeros(3, np.int32)
IMAGES = normal((2, 3, 4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.lerp_codes(T, CODES, T), r"start must be \[N, D\], got \[3\]"),
        (lambda: ops.lerp_codes(CODES, CODES[:2], T), r"end must be \[3, 4\], got \[2, 4\]"),
        (lambda: ops.lerp_codes(CODES, CODES, T[:1]), r"t must be \[3\], got \[1\]"),
        (lambda: ops.path_codes(CODES, INDEX, INDEX, grid=4), r"vertices must be \[N, V, D\]"),
        (lambda: ops.path_codes(LINES[:, :0], INDEX, INDEX, grid=4), "at least one vertex"),
        (lambda: ops.path_codes(LINES, INDEX[None], INDEX, grid=4), r"image_index must be \[M\]"),
        (lambda: ops.path_codes(LINES, INDEX, INDEX[:1], grid=4), r"step must be \[3\], got \[1\]"),
        (lambda: ops.path_codes(LINES, INDEX + 2, INDEX, grid=4), r"image_index must be in \[0, 2"),
        (lambda: ops.path_codes(LINES, INDEX - 1, INDEX, grid=4), "image_index must be in .* -1"),
        (lambda: ops.path_codes(LINES, INDEX, INDEX + 5, grid=4), r"step must be in \[0, 4\]"),
        (lambda: ops.path_codes(LINES, INDEX, INDEX - 1, grid=4), "step must be in .* got -1"),
        (lambda: ops.path_codes(LINES, INDEX, INDEX, grid=0), "grid must be at least 1, got 0"),
        (lambda: ops.difference_saliency(IMAGES[0], IMAGES), r"a must be \[N, C, H, W\]"),
        (lambda: ops.difference_saliency(IMAGES, IMAGES[:1]), r"b must be \[2, 3, 4, 4\], got"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
