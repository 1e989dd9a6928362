# SPDX-License-Identifier: Apache-2.0
"""One call of the explainer: its checked arguments, and the loop over groups of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, to_numpy
from .backends import Backend
from .exemplars import Exemplars
from .explanation import Explanation
from .memory import allocate, in_groups
from .path_search import STATUSES, Clock, Outcome, SearchRules, search_flips
from .saliency import difference_saliency
from .targets import Target

_NO_DIFFERENCE = ("already_target", "non_finite", "rejected")


@dataclass(frozen=True)
class ExplainJob:
    """What one call works on; groups of `backend.max_batch` images are searched together.

    Attributes:
        images: [N, C, S, S].
        reasons: Per image why it is rejected, or None.
        target: What each image is to reach.
        exemplars: Where each path leads.
        rules: Of the search.
        against: "reconstruction" or "image", what counterfactuals are compared with.
        frame_steps: Grid positions decoded for display.
        backend: The networks.
        classify: Images [n, C, S, S] of the backend -> logits [n, K].
        bank_names: Names of the bank's rows, or None without a bank.
        class_names: K names.
        clock: Seconds per stage.
    """

    images: Float32
    reasons: Sequence[str | None]
    target: Target
    exemplars: Exemplars
    rules: SearchRules
    against: str
    frame_steps: npt.NDArray[np.int32]
    backend: Backend
    classify: Callable[[Any], Float32]
    bank_names: Sequence[str] | None
    class_names: tuple[str, ...]
    clock: Clock

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

        def unknown(*shape: int) -> Float32:
            return np.full((count, *shape), np.nan, dtype=np.float32)

        def nobody(*shape: int) -> npt.NDArray[np.int64]:
            return np.full((count, *shape), -1, dtype=np.int64)

        shape, classes = self.images.shape[1:], self.rules.num_classes
        return Explanation(
            status=np.full(count, "rejected", dtype=f"U{max(map(len, STATUSES))}"),
            counterfactual=unknown(*shape),
            reconstruction=unknown(*shape),
            difference=np.zeros((count, *shape), dtype=np.float32),
            saliency=np.zeros((count, *shape[1:]), dtype=np.float32),
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
            images=self.images,
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
        images = np.ascontiguousarray(self.images[part])
        if not good.all():  # grey stands in, so that the others are computed in the same company
            images = np.where(good[:, None, None, None], images, np.float32(0))
        with self.clock("classify"):
            logits = self.classify(images)
        with self.clock("encode"):
            individual, codes = self.backend.encode(images)
        finite = good & np.isfinite(logits).all(axis=1) & np.isfinite(codes).all(axis=1)
        source = np.where(finite, np.where(finite[:, None], logits, 0).argmax(axis=1), -1)
        target = self.target.resolve(
            first, logits, source, self.exemplars.reachable(self.rules.num_classes)
        )
        with self.clock("exemplars"):
            ends, rows = self.exemplars.of(first, codes, source, target)
        with self.clock("decode"):
            session = self.backend.session(
                individual, np.stack([codes, ends], axis=1), self.rules.grid
            )
        found = search_flips(
            session,
            self.classify,
            images,
            source,
            target,
            self.rules,
            in_flight,
            self.backend.coarse_batch,
            self.clock,
        )
        where = first + np.flatnonzero(good)
        result.source_class[where] = source[good]
        result.target_class[where] = target[good]
        result.logits_source[where] = logits[good]
        result.exemplar[where] = rows[good]
        self._record(result, found, good, where)
        if result.path_images is not None:
            with self.clock("frames"):
                for position, step in enumerate(self.frame_steps):
                    index = np.flatnonzero(finite).astype(np.int32)
                    decoded = session.decode(index, np.full_like(index, step))
                    result.path_images[first + index, position] = to_numpy(decoded)

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
        result.counterfactual[where] = found.counterfactual[good]
        result.reconstruction[where] = found.reconstruction[good]
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
        with self.clock("saliency"):
            shown = where[~np.isin(status, _NO_DIFFERENCE)]
            to_image = (result.status[shown] == "reconstruction_flips") | (self.against == "image")
            reference = np.where(
                to_image[:, None, None, None], self.images[shown], result.reconstruction[shown]
            )
            if len(shown):
                result.difference[shown], result.saliency[shown] = difference_saliency(
                    result.counterfactual[shown], reference
                )
