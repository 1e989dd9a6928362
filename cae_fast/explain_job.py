# SPDX-License-Identifier: Apache-2.0
"""One call of the explainer: its checked arguments, and the loop over groups of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, like, put_rows, to_numpy, with_grey
from .explanation import Explanation
from .group_search import GroupSearch, Searched
from .memory import allocate, in_groups
from .path_search import STATUSES
from .saliency import difference_saliency

_NO_DIFFERENCE = ("already_target", "non_finite", "rejected")


@dataclass(frozen=True)
class ExplainJob:
    """What one call works on; groups of `backend.max_batch` images are searched together.

    Attributes:
        images: [N, C, S, S]: NumPy, or a C-contiguous tensor on the device that explains.
        reasons: Per image why it is rejected, or None.
        search: What is done with each group.
        frame_steps: Grid positions decoded for display.
        bank_names: Names of the bank's rows, or None without a bank.
        class_names: K names.
    """

    images: Any
    reasons: Sequence[str | None]
    search: GroupSearch
    frame_steps: npt.NDArray[np.int32]
    bank_names: Sequence[str] | None
    class_names: tuple[str, ...]

    def run(self, names: list[str], on_progress: Callable[[int, int], None] | None) -> Explanation:
        """Explains all images; arrays are NumPy."""
        count = len(self.images)
        result = allocate(lambda: self._allocate(names), what=f"results of {count} images")

        def explain(rows: slice, in_flight: int) -> None:
            self._explain_group(result, rows, in_flight)
            if on_progress is not None:
                on_progress(rows.stop, count)

        in_groups(explain, count, self.search.backend.max_batch, what="images to explain")
        if not result.searched_again.any():
            result.second_path = []
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

        shape, classes = self.images.shape[1:], self.search.rules.num_classes
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
            exemplar=nobody(self.search.exemplars.k),
            images=self.images.clone() if stays else self.images,
            names=names,
            class_names=self.class_names,
            meta={"rejected": {i: why for i, why in enumerate(self.reasons) if why}},
            exemplar_names=[()] * count,
            reconstructed_class=nobody(),
            second_path=[self._no_path()] * count,
            frame_t=self.frame_steps.astype(np.float32) / np.float32(self.search.rules.grid)
            if frames
            else None,
            path_images=unknown(frames, *shape) if frames else None,
        )

    def _no_path(self) -> Float32:
        return np.empty((0, self.search.exemplars.code_dim), dtype=np.float32)

    def _explain_group(self, result: Explanation, part: slice, in_flight: int) -> None:
        """Explains the images of `part`, searched together with at most `in_flight` points."""
        first = part.start
        good = np.array([why is None for why in self.reasons[part]])
        if not good.any():
            return
        images = with_grey(self.images[part], good)
        searched = self.search.run(first, images, good, in_flight)
        source, rows = searched.source, searched.rows
        where = first + np.flatnonzero(good)
        result.source_class[where] = source[good]
        result.target_class[where] = searched.target[good]
        result.logits_source[where] = searched.logits_source[good]
        result.exemplar[where] = rows[good]
        result.reconstructed_class[where] = searched.reconstructed[good]
        for row, own in searched.apart.items():
            if own.second_path is not None:
                result.second_path[first + row] = own.second_path.astype(np.float32)
        self._record(result, searched, good, where)
        if result.path_images is not None:
            index = np.flatnonzero(good & (source >= 0)).astype(np.int32)
            with self.search.clock("frames"):
                self._draw_frames(result.path_images[part], searched, index)

    def _draw_frames(
        self, frames: Float32, searched: Searched, index: npt.NDArray[np.int32]
    ) -> None:
        """Decodes `frames` [n, T, C, S, S] of images `index` of a group, each where searched."""
        apart = np.isin(index, list(searched.apart))
        drawn = [(index[~apart], index[~apart], searched.session)] if not apart.all() else []
        for row in index[apart]:
            own = searched.apart[int(row)]
            assert own.session is not None
            drawn.append((row[None], np.array([own.place], dtype=np.int32), own.session))
        for rows, places, make in drawn:
            session = make()
            for position, step in enumerate(self.frame_steps):
                decoded = session.decode(places, np.full_like(places, step))
                frames[rows, position] = to_numpy(decoded)

    def _record(
        self,
        result: Explanation,
        searched: Searched,
        good: npt.NDArray[np.bool_],
        where: npt.NDArray[np.int64],
    ) -> None:
        """Writes the outcomes of the `good` images of a group into rows `where`."""
        found = searched.outcome
        grid = np.float32(self.search.rules.grid)
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
            known[:] = ~np.isin(np.flatnonzero(good), list(searched.apart))
        with self.search.clock("saliency"):
            shown = where[~known & ~np.isin(status, _NO_DIFFERENCE)]
            if not len(shown):
                return
            to_image = result.status[shown] == "reconstruction_flips"
            to_image |= self.search.against == "image"
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
