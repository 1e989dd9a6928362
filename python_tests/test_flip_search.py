# SPDX-License-Identifier: Apache-2.0
"""The native flip search against a search written here, one image and one point at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_fast import _C

FLIPPED, NOT_FLIPPED, ALREADY_TARGET, RECONSTRUCTION_FLIPS, NON_FINITE = range(5)
ANY = -1
FIELDS = ("status", "step", "lo", "hi", "reached_class")

Logits = npt.NDArray[np.float32]


@dataclass
class Case:
    """Searches of one batch; paths [N, grid + 1, K] hold the logits of every point."""

    paths: Logits
    source: list[int]
    target: list[int]
    coarse: int
    min_probability: float

    @property
    def grid(self) -> int:
        return self.paths.shape[1] - 1

    def start(self, depth: int) -> _C.FlipSearch:
        return _C.FlipSearch(
            np.array(self.source, np.int32),
            np.array(self.target, np.int32),
            self.paths.shape[2],
            grid=self.grid,
            coarse=self.coarse,
            depth=depth,
            min_probability=self.min_probability,
        )


def run(case: Case, depth: int) -> dict[str, Any]:
    """Runs a search to its end, checking on the way what holds in every round."""
    search = case.start(depth)
    kept = np.full(len(case.paths), -1)
    asked = np.zeros(len(case.paths), int)
    rounds = 0
    while not search.done:
        image_index, step = search.points()
        assert image_index.dtype == step.dtype == np.int32
        assert (np.diff(image_index) >= 0).all()
        assert (np.diff(step)[np.diff(image_index) == 0] > 0).all()
        keep = search.update(case.paths[image_index, step])
        assert keep.dtype == np.bool_
        assert keep.shape == step.shape
        assert len(set(image_index[keep])) == keep.sum()
        kept[image_index[keep]] = step[keep]
        asked += np.bincount(image_index, minlength=len(asked))
        rounds += 1
    result: dict[str, Any] = search.result()
    assert result["rounds"] == rounds
    np.testing.assert_array_equal(result["evaluations"], asked)
    reported = result["status"] != NON_FINITE
    np.testing.assert_array_equal(result["step"][reported], kept[reported])
    return result


def softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(shifted / shifted.sum())


def brute_force(
    path: Logits, source: int, target: int, coarse: int, min_probability: float
) -> tuple[int, int, int, int, int]:
    """Returns status, step, lo, hi and reached class of one image."""
    if source == -1:
        return NON_FINITE, -1, -1, -1, -1
    if source == target:
        return ALREADY_TARGET, -1, -1, -1, source

    def hits(step: int) -> bool:
        top = int(path[step].argmax())
        wanted = top != source if target == ANY else top == target
        return bool(wanted and softmax(path[step])[top] >= min_probability)

    def rank(step: int) -> float:
        if target == ANY:
            return float(-softmax(path[step])[source])
        return float(softmax(path[step])[target])

    grid = len(path) - 1
    lo, hi = -1, -1
    coarse_steps = range(0, grid + 1, grid // coarse)
    for step in coarse_steps:
        if not np.isfinite(path[step]).all():
            return NON_FINITE, -1, -1, -1, -1
        if hits(step):
            lo, hi = step - grid // coarse, step
            break
    else:
        # Equal up to rounding is equal: the lowest step is reported.
        highest = max(map(rank, coarse_steps))
        step = next(s for s in coarse_steps if np.isclose(rank(s), highest, rtol=1e-11, atol=0))
        return NOT_FLIPPED, step, -1, -1, int(path[step].argmax())
    if hi == 0:
        return RECONSTRUCTION_FLIPS, 0, -1, -1, int(path[0].argmax())
    while hi - lo > 1:
        middle = (lo + hi) // 2
        if not np.isfinite(path[middle]).all():
            return NON_FINITE, -1, -1, -1, -1
        lo, hi = (lo, middle) if hits(middle) else (middle, hi)
    return FLIPPED, hi, lo, hi, int(path[hi].argmax())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Batches of 0 .. 6 images, 1 .. 4 classes, ties, thresholds, NaN and Inf; monotone or not."""
    count = draw(st.integers(0, 6))
    classes = draw(st.integers(1, 4))
    grid_bits = draw(st.integers(0, 6))
    grid, coarse = 2**grid_bits, 2 ** draw(st.integers(0, grid_bits))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    paths = rng.integers(0, 9, (count, grid + 1, classes)).astype(np.float32) / 4
    source = draw(st.lists(st.integers(-1, classes - 1), min_size=count, max_size=count))
    target = draw(st.lists(st.integers(-1, classes - 1), min_size=count, max_size=count))
    if draw(st.booleans()):
        for i in range(count):
            first = rng.integers(0, grid + 2)
            paths[i, :first, source[i]] += 3
            paths[i, first:, target[i]] += 3
    if draw(st.booleans()):
        bad = rng.random(paths.shape[:2]) < 0.1
        paths[bad, rng.integers(classes)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    min_probability = draw(st.sampled_from([0.0, 0.0, 0.35, 0.7]))
    return Case(paths, source, target, coarse, min_probability)


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


def two_class(hits: list[float]) -> Logits:
    """Path of one image from the lead of class 1 over class 0 at each step."""
    lead = np.array(hits, np.float32)
    return np.stack([np.zeros_like(lead), lead], axis=1)[None]


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
        ("min_probability", -0.1, "min_probability must be in"),
        ("min_probability", 1.5, "min_probability must be in"),
        ("min_probability", float("nan"), "min_probability must be in"),
    ],
)
def test_bad_arguments_are_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _C.FlipSearch(**{**VALID, name: value})


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
