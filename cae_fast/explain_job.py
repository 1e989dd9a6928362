# SPDX-License-Identifier: Apache-2.0
"""One call of the explainer: its checked arguments, and the loop over groups of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, like, put_rows, to_numpy, with_grey
from .backends import Backend, DecodeSession
from .backends.cuda import CudaBackend
from .classifier_input import InputForm
from .device_search import LARGEST_CODE, Classify, DeviceSearcher, Group
from .exemplars import Exemplars
from .explanation import Explanation
from .manifold.paths import GuidedPaths
from .memory import allocate, in_groups
from .path_search import STATUSES, Clock, Outcome, SearchRules, search_flips
from .saliency import difference_saliency
from .targets import Target

_NO_DIFFERENCE = ("already_target", "non_finite", "rejected")


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
class _Searched:
    """What the search of a group came to, and its paths for whoever decodes more of them."""

    outcome: Outcome
    logits_source: Float32
    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    session: Callable[[], DecodeSession]
    rescued: dict[int, Callable[[], DecodeSession]] = field(default_factory=dict)
    """Of images that were searched apart, alone in their session."""


@dataclass(frozen=True)
class ExplainJob:
    """What one call works on; groups of `backend.max_batch` images are searched together.

    Attributes:
        images: [N, C, S, S]: NumPy, or a C-contiguous tensor on the device that explains.
        reasons: Per image why it is rejected, or None.
        target: What each image is to reach.
        exemplars: Where each path leads.
        paths: How it goes there.
        rules: Of the search.
        against: "reconstruction" or "image", what counterfactuals are compared with.
        frame_steps: Grid positions decoded for display.
        backend: The networks.
        classify: Images [n, C, S, S] of the backend -> logits [n, K].
        bank_names: Names of the bank's rows, or None without a bank.
        class_names: K names.
        clock: Seconds per stage.
        on_device: How groups are searched where the networks are; None: from the host.
        rescued: Filled with images that overflowed half precision and were searched in float32.
    """

    images: Any
    reasons: Sequence[str | None]
    target: Target
    exemplars: Exemplars
    paths: GuidedPaths
    rules: SearchRules
    against: str
    frame_steps: npt.NDArray[np.int32]
    backend: Backend
    classify: Callable[[Any], Float32]
    bank_names: Sequence[str] | None
    class_names: tuple[str, ...]
    clock: Clock
    on_device: OnDevice | None = None
    rescued: list[int] = field(default_factory=list)

    def run(self, names: list[str], on_progress: Callable[[int, int], None] | None) -> Explanation:
        """Explains all images; arrays are NumPy."""
        count = len(self.images)
        result = allocate(lambda: self._allocate(names), what=f"results of {count} images")

        def explain(rows: slice, in_flight: int) -> None:
            self._explain_group(result, rows, in_flight)
            if on_progress is not None:
                on_progress(rows.stop, count)

        in_groups(explain, count, self.backend.max_batch, what="images to explain")
        return result

    def _allocate(self, names: list[str]) -> Explanation:
        """Results of all images, nothing known yet: what stays so is `rejected`."""
        count = len(self.images)
        frames = len(self.frame_steps)
        stays = kind_of(self.images) == "torch"

        def unknown(*shape: int) -> Float32:
            return np.full((count, *shape), np.nan, dtype=np.float32)

        def pictures(*shape: int, value: float = np.nan) -> Any:
            if stays:
                return self.images.new_full((count, *shape), value)
            return np.full((count, *shape), value, dtype=np.float32)

        def nobody(*shape: int) -> npt.NDArray[np.int64]:
            return np.full((count, *shape), -1, dtype=np.int64)

        shape, classes = self.images.shape[1:], self.rules.num_classes
        return Explanation(
            status=np.full(count, "rejected", dtype=f"U{max(map(len, STATUSES))}"),
            counterfactual=pictures(*shape),
            reconstruction=pictures(*shape),
            difference=pictures(*shape, value=0.0),
            saliency=pictures(*shape[1:], value=0.0),
            t_flip=unknown(),
            bracket=unknown(2),
            source_class=nobody(),
            target_class=nobody(),
            reached_class=nobody(),
            logits_source=unknown(classes),
            logits_counterfactual=unknown(classes),
            path_t=[np.empty(0, dtype=np.float32) for _ in range(count)],
            path_logits=[np.empty((0, classes), dtype=np.float32) for _ in range(count)],
            evaluations=np.zeros(count, dtype=np.int64),
            exemplar=nobody(self.exemplars.k),
            images=self.images.clone() if stays else self.images,
            names=names,
            class_names=self.class_names,
            meta={"rejected": {i: why for i, why in enumerate(self.reasons) if why}},
            exemplar_names=[()] * count,
            frame_t=self.frame_steps.astype(np.float32) / np.float32(self.rules.grid)
            if frames
            else None,
            path_images=unknown(frames, *shape) if frames else None,
        )

    def _explain_group(self, result: Explanation, part: slice, in_flight: int) -> None:
        """Explains the images of `part`, searched together with at most `in_flight` points."""
        first = part.start
        good = np.array([why is None for why in self.reasons[part]])
        if not good.any():
            return
        images = with_grey(self.images[part], good)
        if self.on_device is not None:
            searched = self._search_on_device(first, images, good)
        else:
            searched = self._search(first, images, good, in_flight)
        source, rows = searched.source, searched.rows
        where = first + np.flatnonzero(good)
        result.source_class[where] = source[good]
        result.target_class[where] = searched.target[good]
        result.logits_source[where] = searched.logits_source[good]
        result.exemplar[where] = rows[good]
        self._record(result, searched.outcome, good, where)
        if result.path_images is not None:
            index = np.flatnonzero(good & (source >= 0)).astype(np.int32)
            with self.clock("frames"):
                self._draw_frames(result.path_images[part], searched, index)

    def _draw_frames(
        self, frames: Float32, searched: _Searched, index: npt.NDArray[np.int32]
    ) -> None:
        """Decodes `frames` [n, T, C, S, S] of images `index` of a group, each where searched."""
        apart = np.isin(index, list(searched.rescued))
        alone = np.zeros(1, dtype=np.int32)
        drawn = [(index[~apart], index[~apart], searched.session)] if not apart.all() else []
        drawn += [
            (index[apart][i : i + 1], alone, searched.rescued[row])
            for i, row in enumerate(index[apart].tolist())
        ]
        for rows, places, make in drawn:
            session = make()
            for position, step in enumerate(self.frame_steps):
                decoded = session.decode(places, np.full_like(places, step))
                frames[rows, position] = to_numpy(decoded)

    def _search(
        self,
        first: int,
        images: Float32,
        good: npt.NDArray[np.bool_],
        in_flight: int,
        backend: Backend | None = None,
    ) -> _Searched:
        """Searches a group step by step from here."""
        backend = backend or self.backend
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
        return _Searched(outcome, logits, source, target, rows, lambda: session)

    def _search_on_device(self, first: int, images: Any, good: npt.NDArray[np.bool_]) -> _Searched:
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

        searched = _Searched(found.outcome, found.logits_source, source, target, rows, session)
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
        self, searched: _Searched, first: int, images: Any, good: npt.NDArray[np.bool_]
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
            searched.rows[i] = one.rows[0]
            if len(self.frame_steps):
                searched.rescued[int(i)] = one.session
            self.rescued.append(first + int(i))

    def _record(
        self,
        result: Explanation,
        found: Outcome,
        good: npt.NDArray[np.bool_],
        where: npt.NDArray[np.int64],
    ) -> None:
        """Writes the outcomes of the `good` images of a group into rows `where`."""
        grid = np.float32(self.rules.grid)
        status = np.array(STATUSES)[found.status[good]]
        result.status[where] = status
        result.reached_class[where] = found.reached_class[good]
        result.evaluations[where] = found.evaluations[good]
        put_rows(result.counterfactual, where, found.counterfactual, good)
        put_rows(result.reconstruction, where, found.reconstruction, good)
        already = status == "already_target"
        result.logits_counterfactual[where] = np.where(
            already[:, None], result.logits_source[where], found.logits_counterfactual[good]
        )
        flipped = where[status == "flipped"]
        result.bracket[flipped, 0] = found.lo[good][status == "flipped"] / grid
        result.bracket[flipped, 1] = found.hi[good][status == "flipped"] / grid
        result.t_flip[flipped] = result.bracket[flipped, 1]
        for i, row in zip(np.flatnonzero(good), where, strict=True):
            order = np.argsort(found.steps[i])
            if len(order):
                result.path_t[row] = np.array(found.steps[i], dtype=np.float32)[order] / grid
                result.path_logits[row] = np.stack(found.path_logits[i])[order]
            if self.bank_names is not None:
                used = result.exemplar[row]
                result.exemplar_names[row] = tuple(self.bank_names[r] for r in used if r >= 0)
        known = np.zeros(len(where), dtype=np.bool_)
        if found.difference is not None and found.saliency is not None:
            put_rows(result.difference, where, found.difference, good)
            put_rows(result.saliency, where, found.saliency, good)
            known[:] = ~np.isin(where, self.rescued)
        with self.clock("saliency"):
            shown = where[~known & ~np.isin(status, _NO_DIFFERENCE)]
            if not len(shown):
                return
            to_image = (result.status[shown] == "reconstruction_flips") | (self.against == "image")
            counterfactual, reconstruction, images = (
                to_numpy(array[shown])
                for array in (result.counterfactual, result.reconstruction, self.images)
            )
            reference = np.where(to_image[:, None, None, None], images, reconstruction)
            every = np.ones(len(shown), dtype=np.bool_)
            for target, values in zip(
                (result.difference, result.saliency),
                difference_saliency(counterfactual, reference),
                strict=True,
            ):
                put_rows(target, shown, like(values, target), every)


def stepping_of(on_device: OnDevice | None, backend: Backend) -> str:
    """How the rounds of the last search were driven; see :meth:`DeviceSearcher.run`."""
    if on_device is not None:
        return on_device.searcher.stepping
    if isinstance(backend, CudaBackend):
        return f"host: a GPU looks up class codes of at most {LARGEST_CODE} numbers in a bank"
    return "host"
