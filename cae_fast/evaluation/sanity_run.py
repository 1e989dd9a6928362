# SPDX-License-Identifier: Apache-2.0
"""Compares every method's maps under the classifier and under randomised ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Float32
from ..explainer import Explainer
from .baselines import BLIND_METHODS, OWN_METHODS, make_baseline
from .differentiable import differentiable
from .own_maps import own_maps
from .result import Evaluation, SanityStage, Settings
from .sanity import cascade_depths, layer_count, randomised, rank_correlation, recentred

_BACKGROUND = 16
_TRIES = 5
_ENOUGH = 0.5


def check_sanity(
    explainer: Explainer,
    images: Float32,
    settings: Settings,
    result: Evaluation,
    path: Path | None,
    *,
    frames: int,
    say: Callable[[str], None],
) -> None:
    """Fills `result.sanity`, one stage for each number of randomised layers.

    Only images that flip to the same target under both classifiers are compared: for the others
    there is no second counterfactual. The randomised classifier's logits are centred over the
    images (see :func:`~cae_fast.evaluation.sanity.recentred`), or hardly any would; of up to five
    shuffles the one under which most images flip is taken, whatever their maps look like.

    Args:
        explainer: With the classifier as it is.
        images: Of the evaluation.
        settings: Of the evaluation.
        result: With explanation and maps.
        path: File of the classifier, for an ONNX one.
        frames: Of each path, as for `result.explanation`.
        say: Called with what is being done.
    """
    number = layer_count(explainer.classifier, path)
    if isinstance(number, str):
        result.notes.append(f"no sanity check: {number}")
        return
    for layers in cascade_depths(number):
        say(f"randomised classifier: last {layers} of {number} layers")
        result.sanity.append(
            _stage(explainer, images, settings, result, path, layers, number, frames)
        )
    if not any(stage.correlation for stage in result.sanity):
        result.notes.append(
            "sanity check: no image flips under the classifier and a randomised one as well"
        )


def _stage(
    explainer: Explainer,
    images: Float32,
    settings: Settings,
    result: Evaluation,
    path: Path | None,
    layers: int,
    of_layers: int,
    frames: int,
) -> SanityStage:
    found = result.explanation
    rows = np.flatnonzero(found.status == "flipped")
    stage = SanityStage(layers, of_layers, 0.0)
    if not len(rows):
        return stage
    arguments: dict[str, Any] = {
        "target": [int(found.reached_class[row]) for row in rows],
        "frames": frames,
    } | settings.explain
    tried = []
    for seed in range(settings.seed, settings.seed + _TRIES):
        other = randomised(explainer.classifier, path, layers=layers, seed=seed)
        assert not isinstance(other, str)
        shuffled = Explainer(explainer.model, recentred(other, images), bank=explainer.bank)
        changed = shuffled.explain(images[rows], **arguments).numpy()
        both = np.flatnonzero(changed.status == "flipped")
        tried.append((other, shuffled, changed, both))
        if len(both) >= _ENOUGH * len(rows):
            break
    other, shuffled, changed, both = max(tried, key=lambda one: len(one[3]))
    stage.share = len(both) / len(images)
    if not len(both):
        return stage
    rows, changed = rows[both], changed[both]
    gradients = differentiable(other)
    for name in result.maps:
        if name in BLIND_METHODS:
            continue
        if name in OWN_METHODS:
            maps = own_maps(name, shuffled, changed, settings).maps
        else:
            made = make_baseline(
                name,
                other,
                gradients,
                images[:_BACKGROUND],
                samples=settings.samples,
                seed=settings.seed,
            )
            if isinstance(made, str):
                continue
            maps = made(images[rows], result.classes[rows])
        values = np.full(len(images), np.nan)
        values[rows] = rank_correlation(result.maps[name][rows], maps)
        stage.correlation[name] = values
    return stage
