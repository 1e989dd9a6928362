# SPDX-License-Identifier: Apache-2.0
"""The maps that can be made of counterfactuals, as methods of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..explainer import Explainer
from ..explanation import Explanation
from ..maps import exemplars_averaged, make_maps
from .baselines import OWN_METHODS
from .result import Float, Settings


@dataclass(frozen=True)
class OwnMaps:
    """Maps of N images.

    Attributes:
        maps: [N, S, S] in [0, 1].
        classified: Images the classifier saw for each, [N].
    """

    maps: Float
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
        name: The method.
        explainer: What made the explanation.
        found: With frames; its arrays are NumPy.
        settings: Of the evaluation.
        mean_k: Exemplars of "cae-mean-k"; None is what the settings say, or what the bank has.
    """
    made = make_maps(
        OWN_METHODS[name],
        explainer,
        found,
        mean_k=exemplars_averaged(explainer, settings.mean_k) if mean_k is None else mean_k,
        smooth_sigma=settings.smooth_sigma,
    )
    searched = np.array([len(t) + 1 for t in found.path_t], dtype=float)
    return OwnMaps(made.saliency.astype(np.float64), searched + made.classified)
