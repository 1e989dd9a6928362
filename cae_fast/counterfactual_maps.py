# SPDX-License-Identifier: Apache-2.0
"""Other saliency maps of images that were explained: of several counterfactuals, of whole paths.

Both leave the explanation and its `saliency`, the raw map, as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, like, to_numpy
from .classifier_calls import ClassifierCalls
from .classifier_outputs import softmax
from .errors import BankError
from .manifold.choice import CHOICES, reliable_rows
from .memory import in_groups
from .saliency import mean_saliency, path_saliency

if TYPE_CHECKING:
    from .explainer import Explainer
    from .explanation import Explanation

#: Statuses of images whose path was searched.
SEARCHED = ("flipped", "not_flipped")


@dataclass(frozen=True)
class ExemplarMaps:
    """Maps of N images by k exemplars each.

    Attributes:
        saliency: [N, H, W] in [0, 1]: mean of the maps that flip, its maximum at 1; the
            explanation's own map where none does or no path was searched.
        maps: The k raw maps, [N, k, H, W]; zeros where no path was searched.
        flipped: Which of them belong to a counterfactual that flips, bool [N, k].
        exemplar: Bank rows, nearest first, int64 [N, k]; -1 where no path was searched.
        evaluations: Decoder calls spent, int64 [N].
    """

    saliency: Float32
    maps: Float32
    flipped: npt.NDArray[np.bool_]
    exemplar: npt.NDArray[np.int64]
    evaluations: npt.NDArray[np.int64]


def mean_over_exemplars(explainer: Explainer, explanation: Explanation, k: int = 5) -> ExemplarMaps:
    """Explains each image towards each of its k nearest exemplars; the mean of maps that flip.

    Where one counterfactual differs from its image also by what is peculiar to its exemplar, the
    mean keeps what k of them have in common.

    Args:
        explainer: With the bank; what made `explanation`, or one of the same model.
        explanation: Of the images. Targets, path, search, tolerance and what maps are compared
            with are its own; of its choice of exemplars it counts whether they are reliable.
        k: Exemplars an image; the cost is k explanations.

    Returns:
        Maps; images that are not searched (rejected, of the target class from the start, ...), or
        of which a second path is told, keep their own.

    Raises:
        BankError: No bank, or fewer than `k` usable rows of a class.
        ValueError: `k` is not a positive integer, or the explanation's exemplars were given.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")
    bank = explainer.bank
    if bank is None:
        raise BankError("the nearest exemplars are looked up in a bank: give Explainer(..., bank=)")
    asked = dict(explanation.meta["parameters"])
    choice = CHOICES.get(asked["exemplars"])
    if choice is None:
        raise ValueError("the explanation's exemplars were given, not looked up: no k nearest")
    found = explanation.numpy()
    count, side = len(found), found.saliency.shape[1:]
    maps = np.zeros((count, k, *side), dtype=np.float32)
    flipped = np.zeros((count, k), dtype=np.bool_)
    exemplar = np.full((count, k), -1, dtype=np.int64)
    evaluations = np.zeros(count, dtype=np.int64)
    rows = np.flatnonzero(np.isin(found.status, SEARCHED) & ~found.searched_again)
    if len(rows):
        images = like(np.ascontiguousarray(found.images[rows]), explanation.images)
        exemplar[rows] = bank.nearest(
            to_numpy(explainer.encode(images).class_code),
            found.target_class[rows],
            k,
            source_class=found.source_class[rows],
            among=reliable_rows(bank, k) if choice.reliable else bank.usable,
        )
        arguments = {
            name: asked[name]
            for name in ("path", "tolerance", "min_probability", "coarse", "search")
        } | {"saliency_against": asked["saliency_against"], "target": _targets(found, rows)}
        arguments["reach"] = found.reach
        for j in range(k):
            one = explainer.explain(images, exemplars=exemplar[rows, j], **arguments).numpy()
            flipped[rows, j] = np.asarray(one.status == "flipped")
            maps[rows, j] = one.saliency
            evaluations[rows] += one.evaluations
    some = np.asarray(flipped.any(axis=1))[:, None, None]
    saliency = np.where(some, mean_saliency(maps, flipped), found.saliency)
    return ExemplarMaps(saliency.astype(np.float32), maps, flipped, exemplar, evaluations)


def weighted_along_path(explainer: Explainer, explanation: Explanation) -> Float32:
    """Maps of what changes along the whole path, weighted by the change of the target's chance.

    See :func:`cae_fast.saliency.path_saliency`. The target is the class reached; where none is
    reached, the one asked for, or any but the image's own.

    Args:
        explainer: Its classifier is asked about the frames.
        explanation: Made with `frames` of at least 2; more frames follow the path more closely.

    Returns:
        [N, H, W], float32 in [0, 1]; the explanation's own maps where no path was searched.

    Raises:
        ValueError: The explanation has no frames.
        ClassifierError: The classifier failed.
    """
    found = explanation.numpy()
    if found.path_images is None:
        raise ValueError("the explanation has no frames: explain(..., frames=17) keeps them")
    saliency = np.array(found.saliency, dtype=np.float32)
    rows = np.flatnonzero(np.isin(found.status, SEARCHED))
    classify = classifies(explainer, explanation)

    def work(group: slice, limit: int) -> None:
        for i in rows[group]:
            frames = np.clip(np.ascontiguousarray(found.path_images[i]), -1, 1)
            if not np.isfinite(frames).all():
                continue
            parts = range(0, len(frames), limit)
            chance = softmax(np.concatenate([classify(frames[k : k + limit]) for k in parts]))
            flipped = found.status[i] == "flipped"
            target = int(found.reached_class[i] if flipped else found.target_class[i])
            reached = 1 - chance[:, found.source_class[i]] if target < 0 else chance[:, target]
            saliency[i] = path_saliency(frames[None], np.clip(reached, 0, 1)[None])[0]

    in_groups(work, len(rows), explainer.backend.max_batch, what="paths to weigh")
    return saliency


def classifies(
    explainer: Explainer, explanation: Explanation
) -> Callable[[npt.NDArray[np.float32]], Float32]:
    """The classifier, for NumPy images [m, C, H, W]: logits [m, K], NumPy.

    It gets arrays of the kind and on the device of the explanation's, as in the search.
    """
    calls = ClassifierCalls(
        explainer.classifier, explainer.model.config, explainer.backend, explanation.images
    )
    return lambda images: calls.to_host(np.ascontiguousarray(images, dtype=np.float32))


def path_ends(explainer: Explainer, found: Explanation, rows: npt.NDArray[np.int64]) -> Float32:
    """Images decoded at the far ends of guided paths, in [-1, 1].

    Args:
        explainer: What made the explanation, or one of the same model and bank.
        found: With NumPy arrays.
        rows: Of the images, int64 [M].

    Returns:
        [M, C, S, S]; the counterfactual where the exemplar is no bank row, or where half precision
        overflows at the end.
    """
    ends = np.array(found.counterfactual[rows], dtype=np.float32)
    again = found.searched_again[rows]
    known = np.flatnonzero((found.exemplar[rows] >= 0).all(axis=1) & ~again)
    second = np.flatnonzero(again)
    for places, draw in (
        (known, partial(_first_ends, explainer, found)),
        (second, partial(_second_ends, explainer, found)),
    ):
        if len(places):
            drawn = draw(rows[places], np.ascontiguousarray(found.images[rows[places]]))[:, 0]
            good = np.isfinite(drawn).all(axis=(1, 2, 3))
            ends[places[good]] = drawn[good]
    return np.clip(ends, -1, 1)


def _first_ends(
    explainer: Explainer, found: Explanation, rows: npt.NDArray[np.int64], images: Float32
) -> Float32:
    """Far ends [M, 1, C, S, S] of paths from the images' own codes."""
    kind, exemplars = found.meta["parameters"]["path"], found.exemplar[rows]
    ends: Float32 = explainer.path(images, exemplars, [1.0], path=kind, reach=found.reach)
    return ends


def _second_ends(
    explainer: Explainer, found: Explanation, rows: npt.NDArray[np.int64], images: Float32
) -> Float32:
    """Far ends [M, 1, C, S, S] of second paths."""
    codes = np.stack([found.second_path[row][-1:] for row in rows])
    ends: Float32 = explainer.path_between(images, codes, [1.0])
    return ends


def _targets(found: Explanation, rows: npt.NDArray[np.int64]) -> list[Any]:
    """What each image was to reach, as `Explainer.explain` takes it."""
    return ["any" if target < 0 else int(target) for target in found.target_class[rows]]
