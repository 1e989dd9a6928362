# SPDX-License-Identifier: Apache-2.0
"""How long each method takes, by turns: what else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..arrays import Float32
from ..explainer import Explainer
from ..maps import PATH_FRAMES
from .baselines import OWN_METHODS, Attribute
from .own_maps import own_maps
from .result import Settings

_ROUNDS = 5
_IMAGES = 4  # of a round


def seconds_by_turns(
    explainer: Explainer,
    images: Float32,
    classes: npt.NDArray[np.int64],
    settings: Settings,
    methods: Mapping[str, Attribute],
) -> dict[str, float]:
    """Seconds an image of each method: medians of rounds, in each of which all have a turn.

    Methods of the explainer's own include the search of the counterfactual. The first rounds may
    be slower (plans for groups of this size are made); a median of five lets that pass.

    Args:
        explainer: With a bank.
        images: [N, C, S, S], N >= 1; each round takes the next few of them.
        classes: That other methods explain, [N].
        settings: Which methods, and how.
        methods: Those that are not the explainer's own.
    """
    own = [name for name in settings.methods if name in OWN_METHODS]
    taken: dict[str, list[float]] = {name: [] for name in (*own, *methods)}
    arguments = {"target": settings.target} | settings.explain
    for turn in range(_ROUNDS):
        rows = np.unique(np.arange(turn * _IMAGES, (turn + 1) * _IMAGES) % len(images))
        if own:
            start = time.perf_counter()
            found = explainer.explain(images[rows], **arguments).numpy()
            search = (time.perf_counter() - start) / len(rows)
        for name in own:
            shown, frames = found, 0.0
            if name == "cae-weighted":
                shown = explainer.explain(images[rows], frames=PATH_FRAMES, **arguments).numpy()
                frames = shown.meta["seconds"].get("frames", 0.0) / len(rows)
            start = time.perf_counter()
            own_maps(name, explainer, shown, settings)
            taken[name].append(search + frames + (time.perf_counter() - start) / len(rows))
        for name, attribute in methods.items():
            start = time.perf_counter()
            attribute(images[rows], classes[rows])
            taken[name].append((time.perf_counter() - start) / len(rows))
    return {name: float(np.median(each)) for name, each in taken.items()}
