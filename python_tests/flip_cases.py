# SPDX-License-Identifier: Apache-2.0
"""Searches of flips along given paths, and the same written here one point at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
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

    def start(
        self, depth: int, coarse_batch: int | None = None, method: str = "bisection"
    ) -> _C.FlipSearch:
        return _C.FlipSearch(
            np.array(self.source, np.int32),
            np.array(self.target, np.int32),
            self.paths.shape[2],
            grid=self.grid,
            coarse=self.coarse,
            depth=depth,
            min_probability=self.min_probability,
            coarse_batch=coarse_batch,
            method=method,
        )


def run(
    case: Case, depth: int, coarse_batch: int | None = None, method: str = "bisection"
) -> dict[str, Any]:
    """Runs a search to its end, checking on the way what holds in every round."""
    search = case.start(depth, coarse_batch, method)
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


def coarse_points(path: Logits, source: int, target: int, case: Case) -> int:
    """Coarse points up to the first that hits or is not finite, that one included."""
    if source in (ANY, target):
        return 0
    for number, step in enumerate(range(0, case.grid + 1, case.grid // case.coarse)):
        ends = brute_force(path[[step, step]], source, target, 1, case.min_probability)
        if ends[0] != NOT_FLIPPED:
            return number + 1
    return case.coarse + 1


def two_class(hits: list[float]) -> Logits:
    """Path of one image from the lead of class 1 over class 0 at each step."""
    lead = np.array(hits, np.float32)
    return np.stack([np.zeros_like(lead), lead], axis=1)[None]


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
