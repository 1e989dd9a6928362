# SPDX-License-Identifier: Apache-2.0
"""A second path for images whose first one explains nothing.

A decoder that knows little of an image's class may draw it as one of another: then the path begins
on the wrong side, and there is no flip to be found. Such a path begins anew, where the line towards
exemplars of the image's own class, or else the one away from the target's, is first drawn as what
the classifier sees in the image. And where nothing flips, a second path leads to exemplars from the
middle of their class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, to_numpy
from .backends import Backend, DecodeSession
from .exemplars import Exemplars
from .manifold.paths import GuidedPaths, codes_along
from .path_search import STATUSES, Clock, Outcome, SearchRules, class_at_start, search_flips

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

_FLIPPED, _NOT_FLIPPED, _RECONSTRUCTION_FLIPS = (
    STATUSES.index(name) for name in ("flipped", "not_flipped", "reconstruction_flips")
)
#: Of the image's own class, where its path begins anew, if any point has it: nearer to the
#: boundary, the first point that flips would be the start itself but for rounding.
START_PROBABILITY = 0.75


@dataclass(frozen=True)
class SecondPath:
    """What a second path of one image came to.

    Attributes:
        outcome: Of several images.
        place: Which of them it is, also in `session`.
        rows: Bank rows [k] of its exemplars.
        vertices: The path, [V, D].
        session: Of the paths.
    """

    outcome: Outcome
    place: int
    rows: IntArray
    vertices: FloatArray
    session: DecodeSession


@dataclass(frozen=True)
class SecondSearch:
    """How images of one call are searched again.

    Attributes:
        exemplars: Looked up in a bank.
        paths: How they are led to.
        rules: Of the search.
        classify: Images [n, C, S, S] of the backend -> logits [n, K].
        clock: Seconds per stage.
    """

    exemplars: Exemplars
    paths: GuidedPaths
    rules: SearchRules
    classify: Callable[[Any], Float32]
    clock: Clock

    def run(
        self,
        images: Any,
        first: Outcome,
        source: IntArray,
        target: IntArray,
        rows: IntArray,
        backend: Backend,
        in_flight: int,
    ) -> dict[int, SecondPath]:
        """Searches those of a group again of which the first path said little.

        Args:
            images: [n, C, S, S].
            first: What their first paths came to; decodes are added to its `evaluations`.
            source: Their classes [n].
            target: Classes to reach [n], -1: any other.
            rows: Bank rows of the first paths' exemplars [n, k].
            backend: The networks.
            in_flight: Most points decoded and classified at a time.

        Returns:
            By row, what says more than the first path: a flip; or, where its first picture was of
            the target already, a path that begins on the right side.
        """
        begun = class_at_start(first)
        searched = np.isin(first.status, (_FLIPPED, _NOT_FLIPPED, _RECONSTRUCTION_FLIPS))
        astray = searched & (begun >= 0) & (begun != source)
        again = np.flatnonzero(astray | (first.status == _NOT_FLIPPED))
        if not len(again):
            return {}
        part = np.ascontiguousarray(to_numpy(images[again]))
        with self.clock("encode"):
            individual, codes = backend.encode(part)
        turn = _Turn(
            how=self,
            backend=backend,
            in_flight=in_flight,
            images=part,
            individual=individual,
            starts=np.array(to_numpy(codes)),
            source=source[again],
            target=target[again],
            status=np.array(first.status[again]),
        )
        turn.begin_anew(np.where(astray[again], begun[again], -1))
        turn.lead_to_the_middle(rows[again])
        first.evaluations[again] += turn.evaluations
        return {int(again[place]): path for place, path in turn.found.items()}


@dataclass
class _Turn:
    """The images of a group that are searched again, m of them."""

    how: SecondSearch
    backend: Backend
    in_flight: int
    images: Float32
    individual: Any
    starts: FloatArray
    source: IntArray
    target: IntArray
    status: npt.NDArray[np.int32]
    found: dict[int, SecondPath] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.evaluations = np.zeros(len(self.images), dtype=np.int64)

    def begin_anew(self, begun: IntArray) -> None:
        """Moves starts to where images are drawn as of their own class, and searches from there.

        Args:
            begun: Classes [m] that they are drawn as; -1 where that is right.
        """
        wrong, astray = begun >= 0, np.array(self.starts)
        if not wrong.any():
            return
        lines = self._to_own_exemplars(begun), self._away(begun)
        for least in (START_PROBABILITY, 0.0):
            for line in lines:
                wrong &= ~self._move(np.where(wrong, begun, -1), line, least)
        moved = (begun >= 0) & ~wrong
        if moved.any():
            ends, rows = self._ends(astray, moved)
            self._take(moved, ends, rows)

    def _ends(self, starts: FloatArray, which: BoolArray) -> tuple[FloatArray, IntArray]:
        """Codes [m, D] and bank rows [m, k] of the target's exemplars for some images."""
        source = np.where(which, self.source, -1)
        with self.how.clock("exemplars"):
            return self.how.exemplars.of(0, starts, source, self.target)

    def _to_own_exemplars(self, begun: IntArray) -> FloatArray:
        """Paths [m, V, D] to exemplars of the images' own classes; of length 0 without any."""
        how = self.how
        known = how.exemplars.reachable(how.rules.num_classes)[self.source]
        with how.clock("exemplars"):
            begun = np.where(known, begun, -1)
            ends, _ = how.exemplars.of(0, self.starts, begun, self.source)
            return how.paths.vertices(self.starts, ends)

    def _away(self, begun: IntArray) -> FloatArray:
        """Lines [m, 2, D] as long as those to the target's exemplars, the other way."""
        ends, _ = self._ends(self.starts, begun >= 0)
        return np.stack([self.starts, self.starts + (self.starts - ends)], axis=1)

    def _move(self, begun: IntArray, lines: FloatArray, least: float) -> BoolArray:
        """Moves starts along lines to where images are of their class with a probability.

        Returns:
            Which were moved, bool [m]; not those with -1 in `begun`.
        """
        if (begun < 0).all():
            return np.zeros(len(begun), dtype=np.bool_)
        rules = self.how.rules
        outcome, _ = self._search(lines, begun, self.source, replace(rules, min_probability=least))
        found = (begun >= 0) & (outcome.status == _FLIPPED)
        for place in np.flatnonzero(found):
            at = np.array([outcome.hi[place] / rules.grid], dtype=np.float32)
            self.starts[place] = codes_along(self.backend, lines, int(place), at)[0]
        return np.asarray(found)

    def lead_to_the_middle(self, rows: IntArray) -> None:
        """Searches towards exemplars from the middle of their class where nothing flips.

        Args:
            rows: Bank rows of the first paths' exemplars [m, k].
        """
        how = self.how
        classes = how.exemplars.classes_of(self.target, rows)
        stuck = (self.status == _NOT_FLIPPED) & (classes >= 0)
        stuck &= how.exemplars.reachable(how.rules.num_classes)[classes]
        if stuck.any():
            ends, central = np.array(self.starts), np.array(rows)
            with how.clock("exemplars"):
                ends[stuck], central[stuck] = how.exemplars.central(classes[stuck])
            self._take(stuck, ends, central)

    def _take(self, which: BoolArray, ends: FloatArray, rows: IntArray) -> None:
        """Searches the paths of some images, and keeps what says more than what is known."""
        ends = np.where(which[:, None], ends, self.starts)
        vertices = self.how.paths.vertices(self.starts, ends)
        source = np.where(which, self.source, -1)
        outcome, session = self._search(vertices, source, self.target, self.how.rules)
        begins_rightly = (self.status == _RECONSTRUCTION_FLIPS) & (outcome.status == _NOT_FLIPPED)
        for place in np.flatnonzero(which & ((outcome.status == _FLIPPED) | begins_rightly)):
            self.status[place] = outcome.status[place]
            self.found[int(place)] = SecondPath(
                outcome, int(place), rows[place], vertices[place], session
            )

    def _search(
        self, vertices: FloatArray, source: IntArray, target: IntArray, rules: SearchRules
    ) -> tuple[Outcome, DecodeSession]:
        """Searches paths [m, V, D]; those with a source of -1 are left out."""
        with self.how.clock("decode"):
            session = self.backend.session(self.individual, vertices, rules.grid)
        outcome = search_flips(
            session,
            self.how.classify,
            self.images,
            source,
            target,
            rules,
            self.in_flight,
            self.backend.coarse_batch,
            self.how.clock,
        )
        self.evaluations += np.where(source >= 0, outcome.evaluations, 0)
        return outcome, session
