# SPDX-License-Identifier: Apache-2.0
"""One group of images.

The native flip search, fed with decoded and classified points of their paths.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _backend
from .arrays import Float32, Int32, like, to_numpy
from .backends import DecodeSession

STATUSES = (
    "flipped",
    "not_flipped",
    "already_target",
    "reconstruction_flips",
    "non_finite",
    "rejected",
)
MAX_GRID = 1 << 20
SEARCHES = ("bisection", "margin")
ALREADY_TARGET = STATUSES.index("already_target")


@dataclass(frozen=True)
class SearchRules:
    """What the search of a flip goes by; see :meth:`cae_fast.Explainer.explain`."""

    num_classes: int
    grid: int
    coarse: int
    min_probability: float
    search: str


def search_rules(
    num_classes: int, tolerance: Any, coarse: Any, min_probability: Any, search: Any
) -> SearchRules:
    """Checked numbers of a search; the grid is the smallest power of two >= 1 / tolerance.

    Raises:
        ValueError: One is of a wrong type or out of range; the message names it.
    """
    if not _is_number(tolerance) or not 1 / MAX_GRID <= tolerance <= 1:
        raise ValueError(f"tolerance must be in [2**-20, 1], got {tolerance!r}")
    if not _is_number(min_probability) or not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability must be in [0, 1], got {min_probability!r}")
    whole = isinstance(coarse, int) and not isinstance(coarse, bool)
    if not whole or not 1 <= coarse <= 4096 or coarse & (coarse - 1):
        raise ValueError(f"coarse must be a power of two in [1, 4096], got {coarse!r}")
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(map(repr, SEARCHES))}, got {search!r}")
    grid = 1
    while grid < 1 / tolerance:
        grid *= 2
    return SearchRules(num_classes, grid, min(coarse, grid), float(min_probability), search)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


@dataclass
class Outcome:
    """Results of n images, as the arrays of :class:`cae_fast.Explanation` have them.

    Steps are grid positions. Pictures are NumPy, or tensors where they were made.
    """

    status: Int32
    lo: Int32
    hi: Int32
    reached_class: Int32
    evaluations: Int32
    counterfactual: Any
    reconstruction: Any
    logits_counterfactual: Float32
    steps: list[list[int]] = field(default_factory=list)
    path_logits: list[list[Float32]] = field(default_factory=list)
    difference: Any = None  # where they are known already
    saliency: Any = None

    def take(self, row: int, other: Outcome, place: int = 0) -> None:
        """Puts what another outcome says of `place` in the place of `row`."""
        for name in (
            *("status", "lo", "hi", "reached_class", "evaluations"),
            *("counterfactual", "reconstruction", "logits_counterfactual"),
        ):
            mine = getattr(self, name)
            mine[row] = like(getattr(other, name)[place], mine)
        self.steps[row], self.path_logits[row] = other.steps[place], other.path_logits[place]


def class_at_start(outcome: Outcome) -> npt.NDArray[np.int64]:
    """Classes [n] read at t = 0; -1 where that was not asked, or the answer is not finite."""
    classes = np.full(len(outcome.status), -1, dtype=np.int64)
    for i, (steps, logits) in enumerate(zip(outcome.steps, outcome.path_logits, strict=True)):
        if 0 in steps and np.isfinite(row := logits[steps.index(0)]).all():
            classes[i] = row.argmax()
    return classes


def search_flips(
    session: DecodeSession,
    classify: Callable[[Any], Float32],
    images: Float32,
    source_class: npt.NDArray[np.int64],
    target_class: npt.NDArray[np.int64],
    rules: SearchRules,
    max_batch: int,
    coarse_batch: int | None,
    clock: Clock,
) -> Outcome:
    """Searches the flips of a group.

    The image decoded at a reported point is kept, so nothing is decoded twice.

    Args:
        session: Paths of the n images.
        classify: Decoded images -> logits [m, K].
        images: The images, [n, C, H, W].
        source_class: [n]; -1 leaves an image out as non-finite.
        target_class: [n]; -1 is any other class.
        rules: Grid, predicate, number of classes, method.
        max_batch: Points decoded and classified at a time.
        coarse_batch: Points of each coarse scan per round, None for what fits `max_batch`; see
            :class:`cae_fast.backends.Backend`.
        clock: Gets the stages "decode" and "classify".
    """
    count = len(images)
    if coarse_batch is None:  # as much of the scan as may be in flight, not all that was asked for
        coarse_batch = max(1, max_batch // max(1, count))
    search = _backend.FlipSearch(
        source_class.astype(np.int32),
        target_class.astype(np.int32),
        rules.num_classes,
        grid=rules.grid,
        coarse=rules.coarse,
        min_probability=rules.min_probability,
        coarse_batch=coarse_batch,
        method=rules.search,
    )
    counterfactual = np.full(images.shape, np.nan, dtype=np.float32)
    reconstruction = np.full(images.shape, np.nan, dtype=np.float32)
    reported = np.full((count, rules.num_classes), np.nan, dtype=np.float32)
    steps: list[list[int]] = [[] for _ in range(count)]
    path_logits: list[list[Float32]] = [[] for _ in range(count)]
    while not search.done:
        image_index, step = search.points()
        decoded = np.empty((len(step), *images.shape[1:]), dtype=np.float32)
        logits = np.empty((len(step), rules.num_classes), dtype=np.float32)
        for first in range(0, len(step), max_batch):
            part = slice(first, first + max_batch)
            with clock("decode"):
                points = session.decode(image_index[part], step[part])
                decoded[part] = to_numpy(points)
            with clock("classify"):
                logits[part] = classify(points)
        # A picture that is not finite says nothing, whatever the classifier makes of it.
        logits[~np.isfinite(decoded).all(axis=(1, 2, 3))] = np.nan
        keep = search.update(logits)
        at_start = step == 0
        reconstruction[image_index[at_start]] = decoded[at_start]
        counterfactual[image_index[keep]] = decoded[keep]
        reported[image_index[keep]] = logits[keep]
        for i, s, row in zip(image_index.tolist(), step.tolist(), logits, strict=True):
            steps[i].append(s)
            path_logits[i].append(row)
    found = search.result()
    evaluations = np.array(found["evaluations"])
    already = np.flatnonzero(found["status"] == ALREADY_TARGET).astype(np.int32)
    with clock("decode"):
        for first in range(0, len(already), max_batch):
            rows = already[first : first + max_batch]
            reconstruction[rows] = to_numpy(session.decode(rows, np.zeros_like(rows)))
    counterfactual[already] = images[already]
    evaluations[already] += 1
    nowhere = found["status"] == STATUSES.index("non_finite")
    counterfactual[nowhere], reported[nowhere] = np.nan, np.nan
    return Outcome(
        status=found["status"],
        lo=found["lo"],
        hi=found["hi"],
        reached_class=np.where(nowhere, np.int32(-1), found["reached_class"]),
        evaluations=evaluations,
        counterfactual=counterfactual,
        reconstruction=reconstruction,
        logits_counterfactual=reported,
        steps=steps,
        path_logits=path_logits,
    )
