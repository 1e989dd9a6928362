# SPDX-License-Identifier: Apache-2.0
"""Searches one group of images: from the host, or where the networks are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, to_numpy
from .backends import Backend, DecodeSession
from .backends.cuda import CudaBackend
from .classifier_input import InputForm
from .device_search import LARGEST_CODE, Classify, DeviceSearcher, Group
from .exemplars import Exemplars
from .manifold.paths import GuidedPaths
from .path_search import STATUSES, Clock, Outcome, SearchRules, class_at_start, search_flips
from .second_search import SecondSearch
from .targets import Target


@dataclass(frozen=True)
class OnDevice:
    """A searcher, and the classifier as it calls it.

    Attributes:
        searcher: Of the backend.
        classify: (device array [m, C, S, S], None) or (points in `form`, `form`) -> logits [m, K]
            of any kind.
        state: What a graph of `classify` depends on, where it may be captured; else None.
        rescue: Makes the backend for images whose pictures overflow half precision.
        form: How the classifier wants path points; None: as images.
    """

    searcher: DeviceSearcher
    classify: Classify
    state: tuple[Any, ...] | None
    rescue: Callable[[], Backend]
    form: InputForm | None = None


@dataclass(frozen=True)
class Apart:
    """Where an image was searched that was not searched with its group, or not only.

    Attributes:
        session: Of its path; None where no more of it is decoded.
        place: Which of the session's paths is its own.
        second_path: The path, [V, D], where it was a second one; else None.
    """

    session: Callable[[], DecodeSession] | None
    place: int
    second_path: npt.NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Searched:
    """What the search of a group came to, and its paths for whoever decodes more of them.

    `reconstructed` are classes [n] at the start of their first paths.
    """

    outcome: Outcome
    logits_source: Float32
    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    session: Callable[[], DecodeSession]
    reconstructed: npt.NDArray[np.int64]
    apart: dict[int, Apart] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupSearch:
    """How groups of one call are searched.

    Attributes:
        target: What each image is to reach.
        exemplars: Where each path leads.
        paths: How it goes there.
        rules: Of the search.
        against: "reconstruction" or "image", what counterfactuals are compared with.
        backend: The networks.
        classify: Images [n, C, S, S] of the backend -> logits [n, K].
        clock: Seconds per stage.
        on_device: How groups are searched where the networks are; None: from the host.
        second: Searches again what the first path said little about, or None.
        draws: Whether more points of the paths will be decoded.
        rescued: Filled with images that overflowed half precision and were searched in float32.
    """

    target: Target
    exemplars: Exemplars
    paths: GuidedPaths
    rules: SearchRules
    against: str
    backend: Backend
    classify: Callable[[Any], Float32]
    clock: Clock
    on_device: OnDevice | None = None
    second: SecondSearch | None = None
    draws: bool = True
    rescued: list[int] = field(default_factory=list)

    def run(self, first: int, images: Any, good: npt.NDArray[np.bool_], in_flight: int) -> Searched:
        """Searches the images `first`, `first + 1`, ...

        Args:
            first: Index of the first of these images among all.
            images: [n, C, S, S]; grey where they are not `good`.
            good: Which of them are searched at all, [n].
            in_flight: Most points decoded and classified at a time from the host.
        """
        if self.on_device is not None:
            return self._search_on_device(first, images, good, in_flight)
        return self._search(first, images, good, in_flight, self.backend)

    def _search(
        self,
        first: int,
        images: Float32,
        good: npt.NDArray[np.bool_],
        in_flight: int,
        backend: Backend,
    ) -> Searched:
        """Searches a group step by step from here."""
        with self.clock("classify"):
            logits = self.classify(images)
        with self.clock("encode"):
            individual, codes = backend.encode(images)
        finite = good & np.isfinite(logits).all(axis=1) & np.isfinite(codes).all(axis=1)
        source = np.where(finite, np.where(finite[:, None], logits, 0).argmax(axis=1), -1)
        target = self.target.resolve(
            first, logits, source, self.exemplars.reachable(self.rules.num_classes)
        )
        with self.clock("exemplars"):
            ends, rows = self.exemplars.of(first, codes, source, target)
        with self.clock("decode"):
            session = backend.session(individual, self.paths.vertices(codes, ends), self.rules.grid)
        outcome = search_flips(
            session,
            self.classify,
            images,
            source,
            target,
            self.rules,
            in_flight,
            backend.coarse_batch,
            self.clock,
        )
        begun = class_at_start(outcome)
        searched = Searched(outcome, logits, source, target, rows, lambda: session, begun)
        self._search_again(searched, images, backend, in_flight)
        return searched

    def _search_again(
        self, searched: Searched, images: Any, backend: Backend, in_flight: int
    ) -> None:
        """Takes what second paths came to where they say more."""
        if self.second is None:
            return
        for row, found in self.second.run(
            images,
            searched.outcome,
            searched.source,
            searched.target,
            searched.rows,
            backend,
            in_flight,
        ).items():
            spent = searched.outcome.evaluations[row]  # of all its paths
            searched.outcome.take(row, found.outcome, found.place)
            searched.outcome.evaluations[row] = spent
            searched.rows[row] = found.rows
            session = partial(_same, found.session) if self.draws else None
            searched.apart[row] = Apart(session, found.place, found.vertices)

    def _search_on_device(
        self, first: int, images: Any, good: npt.NDArray[np.bool_], in_flight: int
    ) -> Searched:
        """Searches a group where the networks are."""
        assert self.on_device is not None
        count = len(images)
        laid = self._laid_here(first, images, good)
        given = laid is not None
        group = Group(
            images=images,
            wanted=self.target.wanted(first, count).astype(np.int32),
            reachable=self.exemplars.reachable(self.rules.num_classes),
            left_out=~good,
            paths=laid,
            pool=self.exemplars.pool,
            k=1 if given else self.exemplars.k,
            reach=1.0 if given else self.paths.reach,
            rules=self.rules,
            against_image=self.against == "image",
            form=self.on_device.form,
        )
        found = self.on_device.searcher.run(
            group,
            self.on_device.classify,
            self.on_device.state,
            self.clock,
            kind_of(images),
        )
        source, target = found.source, found.target
        if (found.missing[(source >= 0) & (source != target)] > 0).any() or given:
            codes = self._codes_of(images)
            _, rows = self.exemplars.of(first, codes, source, target)  # says what is missing
        else:
            rows = found.rows

        def session() -> DecodeSession:
            individual, codes = self.backend.encode(images)
            ends, _ = self.exemplars.of(first, codes, source, target)
            vertices = self.paths.vertices(codes, ends)
            return self.backend.session(individual, vertices, self.rules.grid)

        outcome, begun = found.outcome, class_at_start(found.outcome)
        searched = Searched(outcome, found.logits_source, source, target, rows, session, begun)
        self._search_again(searched, images, self.backend, in_flight)
        self._rescue(searched, first, images, good)
        return searched

    def _codes_of(self, images: Any) -> Float32:
        """Class codes [n, D], zeros where they overflow: such images are searched again.

        Zeros also where nothing depends on them: a path's first vertex is replaced on the device.
        """
        ends_given = self.exemplars.choice is None and self.paths.kind == "line"
        if ends_given and self.paths.reach == 1:
            return np.zeros((len(images), self.exemplars.code_dim), dtype=np.float32)
        codes = to_numpy(self.backend.encode_class(images)).astype(np.float32)
        return np.where(np.isfinite(codes).all(axis=1, keepdims=True), codes, np.float32(0))

    def _laid_here(self, first: int, images: Any, good: npt.NDArray[np.bool_]) -> Float32 | None:
        """Paths [n, V, D] that the device cannot lay itself; None where it can."""
        choice, line = self.exemplars.choice, self.paths.kind == "line"
        if choice is not None and line and not choice.medoid:
            return None
        codes = self._codes_of(images)
        if choice is None:
            ends = self.exemplars.given(first, len(images))
        else:
            with self.clock("classify"):
                logits = self.classify(to_numpy(images))
            finite = good & np.isfinite(logits).all(axis=1)
            source = np.where(finite, logits.argmax(axis=1), -1)
            open_to = self.exemplars.reachable(self.rules.num_classes)
            target = self.target.resolve(first, logits, source, open_to)
            ends, _ = self.exemplars.of(first, codes, source, target)
        with self.clock("exemplars"):
            return self.paths.vertices(codes, ends).astype(np.float32)

    def _rescue(
        self, searched: Searched, first: int, images: Any, good: npt.NDArray[np.bool_]
    ) -> None:
        """Searches again, in float32, images whose codes or pictures overflowed half precision."""
        assert self.on_device is not None
        outcome = searched.outcome
        lost = good & (outcome.status == STATUSES.index("non_finite"))
        lost &= np.isfinite(searched.logits_source).all(axis=1)
        if not lost.any():
            return
        backend = self.on_device.rescue()
        for i in np.flatnonzero(lost):
            image = to_numpy(images[i : i + 1])
            one = self._search(first + int(i), image, good[i : i + 1], 1, backend)
            outcome.take(int(i), one.outcome)
            searched.source[i], searched.target[i] = one.source[0], one.target[0]
            searched.rows[i], searched.reconstructed[i] = one.rows[0], one.reconstructed[0]
            alone = Apart(one.session if self.draws else None, 0)
            searched.apart[int(i)] = one.apart.get(0, alone)
            self.rescued.append(first + int(i))


def _same(session: DecodeSession) -> DecodeSession:
    return session


def stepping_of(on_device: OnDevice | None, backend: Backend) -> str:
    """How the rounds of the last search were driven; see :meth:`DeviceSearcher.run`."""
    if on_device is not None:
        return on_device.searcher.stepping
    if isinstance(backend, CudaBackend):
        return f"host: a GPU looks up class codes of at most {LARGEST_CODE} numbers in a bank"
    return "host"
