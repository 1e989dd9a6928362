# SPDX-License-Identifier: Apache-2.0
"""Every map that can be made of counterfactuals, by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from .arrays import Float32, to_numpy
from .counterfactual_maps import SEARCHED, mean_over_exemplars, weighted_along_path
from .evidence_maps import evidence_maps
from .manifold.choice import default_k
from .minimal_edits import minimal_edits
from .saliency import smooth_saliency

if TYPE_CHECKING:
    from .explainer import Explainer
    from .explanation import Explanation

MapKind = Literal["difference", "mean-k", "weighted", "smooth", "edit", "evidence"]
Against = Literal["reconstruction", "image"]
AGAINST: tuple[Against, ...] = get_args(Against)
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)
#: Frames along the path that "weighted" looks at.
PATH_FRAMES = 17
#: What a map shows, by its kind, for people.
MAP_NAMES: dict[str, str] = {
    "difference": "Where it changes",
    "smooth": "Where it changes, smoothed",
    "weighted": "Where it changes as the class does",
    "mean-k": "Where it changes towards several exemplars",
    "edit": "Fewest pixels that change the class",
    "evidence": "Changes that the classifier cares about",
}
_MEAN_K = 5


@dataclass(frozen=True)
class Maps:
    """Maps of N images.

    Attributes:
        saliency: [N, H, W] in [0, 1].
        classified: Images the classifier saw for each beyond the search, int64 [N].
    """

    saliency: Float32
    classified: npt.NDArray[np.int64]


def check_maps(kind: object, against: object, frames: object, *, given: bool) -> int:
    """Checks what is asked of maps, before anything is searched.

    Args:
        kind: Of map.
        against: What counterfactuals are compared with.
        frames: Wanted along each path.
        given: Whether exemplars are given, not looked up in a bank.

    Returns:
        Frames that are to be decoded along each path: those asked for, or what the map needs.

    Raises:
        ValueError: One of them is nothing that can be had.
    """
    if against not in AGAINST:
        raise ValueError(
            f"saliency_against must be {' or '.join(map(repr, AGAINST))}, got {against!r}"
        )
    if kind not in MAP_KINDS:
        raise ValueError(f"saliency must be one of {', '.join(MAP_KINDS)}, got {kind!r}")
    if kind == "mean-k" and given:
        raise ValueError("saliency 'mean-k' looks exemplars up in the bank: none may be given")
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 0 or frames == 1:
        raise ValueError(f"frames must be 0 or an integer of at least 2, got {frames!r}")
    return PATH_FRAMES if kind == "weighted" and not frames else frames


def kind_shown(kind: str, status: str) -> str:
    """What the map of one image shows: where there is no path, or nothing flips, the difference.

    Args:
        kind: That was asked for.
        status: Of the image.
    """
    having = {"edit": ("flipped",), "mean-k": ("flipped",)}.get(kind, SEARCHED)
    return kind if kind == "smooth" or status in having else "difference"


def make_maps(
    kind: str,
    explainer: Explainer,
    found: Explanation,
    *,
    mean_k: int | None = None,
    smooth_sigma: float | None = None,
) -> Maps:
    """Maps of an explanation.

    Args:
        kind: "difference": what the counterfactual changes, the map of every explanation; "mean-k":
            the mean over counterfactuals of the k nearest exemplars; "weighted": what changes along
            the path, weighted by the probability's change; "smooth": the difference, blurred;
            "edit": of the fewest pixels of the image that, replaced, change its class, for small
            things; "evidence": the changes, weighted by what each region is worth to the
            classifier.
        explainer: What made the explanation.
        found: The explanation; with frames for "weighted".
        mean_k: Exemplars of "mean-k"; None is 5, or what the bank has.
        smooth_sigma: Of "smooth", in pixels; None is a thirty-second of the side.

    Raises:
        ValueError: Unknown kind, or one that this explanation cannot have (no frames; exemplars
            that were given have no k nearest).
        ClassifierError: The classifier failed.
        OutOfMemory: One image does not fit.
    """
    none = np.zeros(len(found), dtype=np.int64)
    if kind == "difference":
        return Maps(to_numpy(found.saliency), none)
    if kind == "mean-k":
        k = exemplars_averaged(explainer) if mean_k is None else mean_k
        several = mean_over_exemplars(explainer, found, k)
        seen = several.evaluations + (several.exemplar >= 0).sum(axis=1)
        return Maps(several.saliency, seen)
    if kind == "weighted":
        maps = weighted_along_path(explainer, found)
        searched = np.isin(found.status, SEARCHED)
        return Maps(maps, searched * np.int64(found.path_images.shape[1]))
    if kind == "smooth":
        side = found.saliency.shape[-1]
        sigma = side / 32 if smooth_sigma is None else smooth_sigma
        return Maps(smooth_saliency(to_numpy(found.saliency), sigma), none)
    if kind == "edit":
        edits = minimal_edits(explainer, found)
        return Maps(edits.saliency, edits.classified)
    if kind == "evidence":
        weighed = evidence_maps(explainer, found)
        return Maps(weighed.saliency, weighed.classified)
    raise ValueError(f"{kind!r} is no kind of map; known are {', '.join(MAP_KINDS)}")


def exemplars_averaged(explainer: Explainer, most: int = _MEAN_K) -> int:
    """How many exemplars "mean-k" averages: at most 5, or as many as the bank has."""
    return most if explainer.bank is None else min(most, default_k(explainer.bank))
