# SPDX-License-Identifier: Apache-2.0
"""The native flip search against a search written here, one image and one point at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flip_cases import (
    ALREADY_TARGET,
    ANY,
    FIELDS,
    FLIPPED,
    NON_FINITE,
    NOT_FLIPPED,
    RECONSTRUCTION_FLIPS,
    Case,
    brute_force,
    cases,
    coarse_points,
    run,
    two_class,
)
from hypothesis import given
from hypothesis import strategies as st

from cae_fast import _C


@given(cases())
def test_same_as_one_point_at_a_time_at_every_depth(case: Case) -> None:
    expected = [
        brute_force(path, source, target, case.coarse, case.min_probability)
        for path, source, target in zip(case.paths, case.source, case.target, strict=True)
    ]
    wanted = np.array(expected, np.int32).reshape(-1, len(FIELDS))
    for depth in (1, 2, 3, 4):
        result = run(case, depth)
        got = np.stack([result[field] for field in FIELDS], axis=1)
        np.testing.assert_array_equal(got, wanted)


@given(cases(), st.sampled_from(["bisection", "margin"]))
def test_the_way_to_scan_changes_the_evaluations_only(case: Case, method: str) -> None:
    needed = np.array(
        [
            coarse_points(path, source, target, case)
            for path, source, target in zip(case.paths, case.source, case.target, strict=True)
        ],
        int,
    )
    one = run(case, 1, 1, method)
    inside = one["evaluations"] - needed
    width = case.grid // case.coarse
    assert ((inside >= 0) & (inside <= int(np.log2(width)) + (method == "margin"))).all()
    for coarse_batch in (*range(2, min(case.coarse, 9) + 2), case.coarse + 5, None):
        size = case.coarse + 1 if coarse_batch is None else coarse_batch
        scanned = np.minimum(-(-needed // size) * size, case.coarse + 1)
        other = run(case, 1, coarse_batch, method)
        for field in FIELDS:
            np.testing.assert_array_equal(other[field], one[field], field)
        np.testing.assert_array_equal(other["evaluations"], scanned + inside)


@given(cases())
def test_margin_finds_a_boundary_of_the_first_coarse_bracket(case: Case) -> None:
    found = run(case, 1, 1, "margin")
    plain = run(case, 1, 1)
    width = case.grid // case.coarse
    for i, (path, source, target) in enumerate(
        zip(case.paths, case.source, case.target, strict=True)
    ):
        if source in (ANY, target):
            assert found["status"][i] == plain["status"][i]
            continue
        points = [
            brute_force(path[[step, step]], source, target, 1, case.min_probability)[0]
            for step in range(case.grid + 1)
        ]
        hi = (coarse_points(path, source, target, case) - 1) * width
        if hi == 0 or points[hi] != RECONSTRUCTION_FLIPS:
            assert all(found[field][i] == plain[field][i] for field in FIELDS)
        elif found["status"][i] == FLIPPED:
            low, high = int(found["lo"][i]), int(found["hi"][i])
            assert hi - width <= low == high - 1 < hi
            assert (points[low], points[high]) == (NOT_FLIPPED, RECONSTRUCTION_FLIPS)
            assert found["reached_class"][i] == path[high].argmax()
            inner = points[hi - width : hi + 1]
            if inner == sorted(inner):  # NOT_FLIPPED < RECONSTRUCTION_FLIPS < NON_FINITE
                assert all(found[field][i] == plain[field][i] for field in FIELDS)
        else:
            assert found["status"][i] == NON_FINITE
            assert NON_FINITE in points[hi - width : hi]


@pytest.mark.parametrize("slope", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("flip", [65, 66, 97, 100, 127, 128])
def test_a_straight_margin_takes_two_evaluations_inside(flip: int, slope: float) -> None:
    lead = (np.arange(257) - (flip - 0.5)) * slope
    result = run(Case(two_class(lead.tolist()), [0], [1], 4, 0.0), 1, 1, "margin")
    assert (result["lo"][0], result["hi"][0]) == (flip - 1, flip)
    assert result["evaluations"][0] <= 3 + 2


@given(cases())
def test_alone_as_in_a_batch(case: Case) -> None:
    together = run(case, 2)
    for i in range(len(case.paths)):
        alone = Case(
            case.paths[i : i + 1],
            case.source[i : i + 1],
            case.target[i : i + 1],
            case.coarse,
            case.min_probability,
        )
        result = run(alone, 2)
        for field in (*FIELDS, "evaluations"):
            assert result[field][0] == together[field][i], field


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [1, 2, 63, 64, 65, 200, 255, 256])
def test_monotone_path_gives_the_first_step_that_hits(first: int, depth: int) -> None:
    path = np.zeros((1, 257, 2), np.float32)
    path[0, :first, 0] = 1
    path[0, first:, 1] = 1
    result = run(Case(path, [0], [1], 4, 0.0), depth)
    assert (result["lo"][0], result["hi"][0]) == (first - 1, first)
    inner = {1: 6, 2: 3 * 3, 3: 2 * 7, 4: 15 + 3}[depth]
    assert result["evaluations"][0] == 5 + inner


@pytest.mark.parametrize(
    ("lead", "target", "min_probability", "expected"),
    [
        ([-1, -1, -1, -1, 1], 1, 0.0, (FLIPPED, 4, 3, 4, 1)),
        ([-1, -1, -1, 1, 1], 1, 0.0, (FLIPPED, 3, 2, 3, 1)),
        ([0, 0, 0, 0, 1], 1, 0.0, (FLIPPED, 4, 3, 4, 1)),  # a tie is the lower class's
        ([1, 1, 1, 1, 1], 1, 0.0, (RECONSTRUCTION_FLIPS, 0, -1, -1, 1)),
        ([1, -1, -1, -1, np.nan], 1, 0.0, (RECONSTRUCTION_FLIPS, 0, -1, -1, 1)),
        ([-1, 1, -1, 1, -3], 1, 0.0, (NOT_FLIPPED, 0, -1, -1, 0)),  # only 0, 2, 4 are seen
        ([-4, -4, -2, -4, -3], ANY, 0.0, (NOT_FLIPPED, 2, -1, -1, 0)),
        ([-3, -1, -1, -1, -1], 1, 0.0, (NOT_FLIPPED, 2, -1, -1, 0)),  # lowest step of equals
        ([1, 1, 1, 1, 3], 1, 0.9, (FLIPPED, 4, 3, 4, 1)),
        ([1, 1, 2, 1, 2], 1, 0.9, (NOT_FLIPPED, 2, -1, -1, 1)),  # reached, but not surely enough
        ([-1, -1, np.nan, -1, 1], 1, 0.0, (NON_FINITE, -1, -1, -1, -1)),
        ([-1, np.nan, -1, -1, 1], 1, 0.0, (FLIPPED, 4, 3, 4, 1)),  # nobody looks at 1
        ([-1, -1, -1, np.inf, 1], 1, 0.0, (NON_FINITE, -1, -1, -1, -1)),
        ([np.nan, 1, 1, 1, 1], 1, 0.0, (NON_FINITE, -1, -1, -1, -1)),
    ],
)
def test_worked_by_hand(
    lead: list[float], target: int, min_probability: float, expected: tuple[int, ...]
) -> None:
    for depth in (1, 2):
        result = run(Case(two_class(lead), [0], [target], 2, min_probability), depth)
        assert tuple(int(result[field][0]) for field in FIELDS) == expected


def test_saturated_probabilities_still_rank_points() -> None:
    path = two_class([-3e38, -2e38, -1e38])
    result = run(Case(path, [0], [1], 2, 0.0), 1)
    assert (result["status"][0], result["step"][0]) == (NOT_FLIPPED, 2)


def test_probability_of_exactly_the_threshold_hits() -> None:
    path = np.full((1, 2, 2), 7, np.float32)
    path[0, 0] = [0, 1]
    assert run(Case(path, [1], [0], 1, 0.5), 1)["status"][0] == FLIPPED
    assert run(Case(path, [1], [0], 1, 0.50001), 1)["status"][0] == NOT_FLIPPED


def test_only_unfinished_images_have_points() -> None:
    flips_at_5 = [-1] * 5 + [1] * 4
    never = [-1] * 9
    paths = np.concatenate([two_class(never), two_class(flips_at_5), two_class(flips_at_5)])
    search = Case(paths, [0, 0, 1], [1, 1, 1], 2, 0.0).start(depth=1)
    image_index, step = search.points()
    assert image_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert step.tolist() == [0, 4, 8] * 2
    again = search.points()
    assert np.array_equal(again[0], image_index)
    assert np.array_equal(again[1], step)
    search.update(paths[image_index, step])
    image_index, step = search.points()
    assert image_index.tolist() == [1]
    assert step.tolist() == [6]


def test_nothing_to_search() -> None:
    for source, target in (([], []), ([0, -1, -1], [0, 1, -1])):
        search = _C.FlipSearch(source, target, 2, grid=256)
        assert search.done
        assert [len(array) for array in search.points()] == [0, 0]
        result = search.result()
        assert result["rounds"] == 0
        assert result["status"].tolist() == [ALREADY_TARGET, NON_FINITE, NON_FINITE][: len(source)]
        assert result["evaluations"].tolist() == [0] * len(source)


def test_many_classes_and_the_largest_grid() -> None:
    flip, classes = 123_456_789, 1000
    search = _C.FlipSearch([3], [999], classes, grid=2**30, coarse=1, depth=4, min_probability=0.9)
    while not search.done:
        _, step = search.points()
        logits = np.zeros((len(step), classes), np.float32)
        logits[np.arange(len(step)), np.where(step >= flip, 999, 3)] = 30
        search.update(logits)
    assert search.result()["hi"].tolist() == [flip]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_any_integer_dtype_and_stride_goes_in(dtype: npt.DTypeLike) -> None:
    source = np.array([0, 9, 1, 9], dtype)[::2]
    search = _C.FlipSearch(source, [1, 0], 2, grid=4, coarse=1)
    logits = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    search.points()
    keep = search.update(np.asfortranarray(np.repeat(logits, 2, axis=0))[::2])
    assert keep.tolist() == [False, True, False, True]


VALID: dict[str, Any] = {
    "source_class": [0, 0],
    "target_class": [1, -1],
    "num_classes": 2,
    "grid": 8,
    "coarse": 4,
    "depth": 1,
    "min_probability": 0.0,
    "coarse_batch": None,
    "method": "bisection",
}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("source_class", [0, 2], r"source_class\[1\] must be in \[-1, 1\], got 2"),
        ("source_class", [-2, 0], r"source_class\[0\] must be in \[-1, 1\], got -2"),
        ("source_class", [0], "target_class must be"),
        ("source_class", [[0, 0]], r"source_class must be \[N\], got 2 dimensions"),
        ("source_class", 0, r"source_class must be \[N\], got 0 dimensions"),
        ("source_class", [0.0, 0.0], "source_class must be an integer array"),
        ("source_class", ["a", "b"], "source_class must be an integer array"),
        ("source_class", [[0], [0, 1]], "source_class must be an integer array"),
        ("source_class", np.array([0, 2**40]), r"source_class\[1\] is out of range"),
        ("target_class", np.array([-(2**40), 0]), r"target_class\[0\] is out of range: -1099"),
        ("target_class", np.array([0, 2**64 - 1], np.uint64), r"\[1\] is out of range: 18446744"),
        ("target_class", [2, 0], r"target_class\[0\] must be in \[-1, 1\], got 2"),
        ("target_class", [0, -2], r"target_class\[1\] must be in \[-1, 1\], got -2"),
        ("target_class", [True, False], "target_class must be an integer array.*bool"),
        ("num_classes", 0, "num_classes must be at least 1, got 0"),
        ("grid", 0, "grid must be a power of two, got 0"),
        ("grid", 100, "grid must be a power of two, got 100"),
        ("grid", 2**40, "grid is out of range: 1099511627776"),
        ("grid", 2**70, "grid is out of range: 1180591620717411303424"),
        ("depth", 1.0, r"depth must be an integer, got 1\.0"),
        ("num_classes", True, "num_classes must be an integer, got True"),
        ("grid", -8, "grid must be a power of two, got -8"),
        ("coarse", 3, "coarse must be a power of two"),
        ("coarse", 16, "at most grid = 8, got 16"),
        ("coarse", 0, "coarse must be a power of two"),
        ("depth", 0, r"depth must be in \[1, 4\], got 0"),
        ("depth", 5, r"depth must be in \[1, 4\], got 5"),
        ("coarse_batch", 0, "coarse_batch must be at least 1, got 0"),
        ("coarse_batch", -1, "coarse_batch must be at least 1, got -1"),
        ("coarse_batch", 1.0, r"coarse_batch must be an integer, got 1\.0"),
        ("method", "golden", "method must be 'bisection' or 'margin', got 'golden'"),
        ("min_probability", -0.1, "min_probability must be in"),
        ("min_probability", 1.5, "min_probability must be in"),
        ("min_probability", float("nan"), "min_probability must be in"),
    ],
)
def test_bad_arguments_are_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _C.FlipSearch(**{**VALID, name: value})


def test_margin_has_no_levels() -> None:
    with pytest.raises(ValueError, match="depth must be 1 for the method 'margin', got 2"):
        _C.FlipSearch(**{**VALID, "depth": 2, "method": "margin"})


def test_the_first_round_is_bounded() -> None:
    rules = {**VALID, "grid": 2**13}
    assert len(_C.FlipSearch(**{**rules, "coarse": 4096}).points()[1]) == 2 * 4097
    with pytest.raises(ValueError, match="coarse must be at most 4096, got 8192"):
        _C.FlipSearch(**{**rules, "coarse": 8192})


@pytest.mark.parametrize(
    ("logits", "says"),
    [
        (np.zeros((9, 2), np.float32), r"logits must be \[10, 2\], got \[9, 2\]"),
        (np.zeros((10, 3), np.float32), r"logits must be \[10, 2\], got \[10, 3\]"),
        (np.zeros(20, np.float32), r"logits must be \[M, K\], got 1 dimensions"),
        (np.zeros((10, 2, 1), np.float32), r"logits must be \[M, K\], got 3 dimensions"),
        (np.zeros((10, 2)), "logits must be float32, got float64"),
        (np.zeros((10, 2), np.int32), "logits must be float32, got int32"),
    ],
)
def test_bad_logits_are_refused_and_change_nothing(logits: npt.NDArray[Any], says: str) -> None:
    search = _C.FlipSearch(**VALID)
    _, step = search.points()
    with pytest.raises(ValueError, match=says):
        search.update(logits)
    assert np.array_equal(search.points()[1], step)
    search.update(np.zeros((10, 2), np.float32))
    assert search.done


def test_calls_out_of_order_are_refused() -> None:
    search = _C.FlipSearch([0], [1], 2, grid=8, coarse=1)
    logits = np.array([[1, 0], [0, 1]], np.float32)
    with pytest.raises(RuntimeError, match=r"points\(\)"):
        search.update(logits)
    with pytest.raises(RuntimeError, match="not done"):
        search.result()
    search.points()
    search.update(logits)
    with pytest.raises(RuntimeError, match=r"points\(\)"):
        search.update(logits[:1])
    for _ in range(3):
        search.points()
        search.update(logits[:1])
    assert search.done
    assert search.result()["hi"].tolist() == [8]
    search.points()
    with pytest.raises(RuntimeError, match="done"):
        search.update(logits[:0])
