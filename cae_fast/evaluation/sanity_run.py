# SPDX-License-Identifier: Apache-2.0
"""Compares every method's maps under the classifier and under randomised ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Float32
from ..data import ImageDataset
from ..explainer import Explainer
from ..manifold.choice import default_k
from ..maps import exemplars_averaged
from .baselines import BLIND_METHODS, OWN_METHODS, make_baseline
from .differentiable import differentiable
from .own_maps import own_maps
from .result import Evaluation, SanityStage, Settings
from .sanity import cascade_depths, layer_count, randomised, rank_correlation, recentred
from .sanity_bank import BankImages, bank_images, rejudged

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
    bank_dataset: ImageDataset | None = None,
) -> None:
    """Fills `result.sanity`, one stage for each number of randomised layers.

    Only images that flip to the same target under both classifiers are compared: for the others
    there is no second counterfactual. The randomised classifier's logits are centred over the
    images (see :func:`~cae_fast.evaluation.sanity.recentred`), or hardly any would; of up to five
    shuffles the one under which most images flip is taken, whatever their maps look like.

    The randomised classifier also judges the bank's images, and its exemplars are those that *it*
    puts into the target class, as many as before: with the real classifier's exemplars the path
    would be the same whatever the classifier says. Where the bank's images are not at hand, that
    is left out, and a note says so.

    Args:
        explainer: With the classifier as it is.
        images: Of the evaluation.
        settings: Of the evaluation.
        result: With explanation and maps.
        path: File of the classifier, for an ONNX one.
        frames: Of each path, as for `result.explanation`.
        say: Called with what is being done.
        bank_dataset: Where the bank's images lie; thumbnails of full size serve as well.
    """
    number = layer_count(explainer.classifier, path)
    if isinstance(number, str):
        result.notes.append(f"no sanity check: {number}")
        return
    pictures = bank_images(explainer, bank_dataset)
    if isinstance(pictures, str):
        result.notes.append(
            f"sanity check with the real classifier's exemplars, so that paths are the same and "
            f"maps hardly can differ: {pictures}"
        )
    for layers in cascade_depths(number):
        say(f"randomised classifier: last {layers} of {number} layers")
        result.sanity.append(
            _stage(explainer, images, settings, result, path, layers, number, frames, pictures)
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
    pictures: BankImages | str,
) -> SanityStage:
    found = result.explanation
    bank = explainer.bank
    assert bank is not None
    flipped = np.flatnonzero(found.status == "flipped")
    stage = SanityStage(layers, of_layers, 0.0, bank_judged=isinstance(pictures, BankImages))
    arguments: dict[str, Any] = {"frames": frames} | settings.explain
    if settings.explain.get("k") is None:  # as many as before, whatever the other bank looks like
        arguments["k"] = default_k(bank)
    tried = []
    for seed in range(settings.seed, settings.seed + _TRIES):
        if not len(flipped):
            break
        other = randomised(explainer.classifier, path, layers=layers, seed=seed)
        assert not isinstance(other, str)
        judge, seen, rows = recentred(other, images), bank, flipped
        if isinstance(pictures, BankImages):
            seen = rejudged(bank, pictures, judge)
            served = seen.usable_counts() >= arguments["k"]
            rows = flipped[served[found.reached_class[flipped]]]
        if not len(rows):
            continue
        shuffled = Explainer(explainer.model, judge, bank=seen)
        target = [int(found.reached_class[row]) for row in rows]
        changed = shuffled.explain(images[rows], **arguments | {"target": target}).numpy()
        both = np.asarray(changed.status == "flipped")
        tried.append((other, shuffled, changed[np.flatnonzero(both)], rows[both]))
        if both.sum() >= _ENOUGH * len(flipped):
            break
    if not any(len(rows) for *_, rows in tried):
        return stage
    other, shuffled, changed, rows = max(tried, key=lambda one: len(one[3]))
    stage.share = len(rows) / len(images)
    averaged = exemplars_averaged(explainer, settings.mean_k)
    gradients = differentiable(other)
    for name in result.maps:
        if name in BLIND_METHODS:
            continue
        if name in OWN_METHODS:
            maps = own_maps(name, shuffled, changed, settings, mean_k=averaged).maps
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
