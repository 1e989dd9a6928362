# SPDX-License-Identifier: Apache-2.0
"""The maps that can be made of counterfactuals, as methods of an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import to_numpy
from ..bank import CodeBank
from ..counterfactual_maps import mean_over_exemplars, weighted_along_path
from ..explainer import Explainer
from ..explanation import Explanation
from ..manifold.choice import default_k
from ..minimal_edits import minimal_edits
from ..saliency import smooth_saliency
from .result import Settings

Float = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class OwnMaps:
    """Maps of N images.

    Attributes:
        maps: [N, S, S] in [0, 1].
        seconds: An image, beyond the explanation and its frames.
        classified: Images the classifier saw for each, [N].
    """

    maps: Float
    seconds: float
    classified: Float


def own_maps(
    name: str,
    explainer: Explainer,
    found: Explanation,
    settings: Settings,
    *,
    mean_k: int | None = None,
) -> OwnMaps:
    """Maps by one of `baselines.OWN_METHODS`.

    Args:
        name: "cae": the explanation's own; "cae-mean-k": mean over counterfactuals of the k nearest
            exemplars, `settings.mean_k` or what the bank has; "cae-weighted": what changes along
            the path, weighted by the probability's change; "cae-smooth": the own, blurred;
            "cae-edit": of the fewest pixels of the image that change its class.
        explainer: What made the explanation.
        found: With frames; its arrays are NumPy.
        settings: Of the evaluation.
        mean_k: Exemplars of "cae-mean-k"; None is :func:`exemplars_averaged` of the bank.
    """
    start = time.perf_counter()
    classified = np.array([len(t) + 1 for t in found.path_t], dtype=float)
    if name == "cae-mean-k":
        assert explainer.bank is not None
        k = exemplars_averaged(settings, explainer.bank) if mean_k is None else mean_k
        several = mean_over_exemplars(explainer, found, k)
        maps = several.saliency
        classified = classified + several.evaluations + (several.exemplar >= 0).sum(axis=1)
    elif name == "cae-weighted":
        maps = weighted_along_path(explainer, found)
        searched = np.isin(found.status, ("flipped", "not_flipped"))
        classified = classified + searched * found.path_images.shape[1]
    elif name == "cae-smooth":
        maps = smooth_saliency(found.saliency, smoothing(settings, found.saliency.shape[-1]))
    elif name == "cae-edit":
        edits = minimal_edits(explainer, found)
        maps = edits.saliency
        classified = classified + edits.classified
    elif name == "cae":
        maps = to_numpy(found.saliency)
    else:
        raise ValueError(f"{name!r} is no map of counterfactuals")
    seconds = (time.perf_counter() - start) / max(1, len(found))
    return OwnMaps(maps.astype(np.float64), seconds, classified)


def exemplars_averaged(settings: Settings, bank: CodeBank) -> int:
    """How many exemplars "cae-mean-k" averages: what was asked for, or what the bank has."""
    return min(settings.mean_k, default_k(bank))


def smoothing(settings: Settings, side: int) -> float:
    """Sigma of "cae-smooth" in pixels: what was asked for, or a thirty-second of the side."""
    return side / 32 if settings.smooth_sigma is None else settings.smooth_sigma
