# SPDX-License-Identifier: Apache-2.0
"""Explanations of one class's score, as attribution libraries ask for them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Float32
from ..classifier import Classifier, classifier_from
from ..explainer import Explainer
from ..explanation import Explanation


def rebound(explainer: Explainer, classifier: Any) -> Explainer:
    """The same model, bank and backend explaining another classifier; None keeps its own."""
    if classifier is None:
        return explainer
    other = copy.copy(explainer)
    plain = callable(classifier) and not isinstance(classifier, Classifier | type)
    # Functions of these libraries take tensors.
    other.classifier = (
        Classifier(classifier, arrays="torch") if plain else classifier_from(classifier)
    )
    other._searcher = None  # holds graphs of the former classifier
    return other


def explain_scores(
    explainer: Explainer,
    images: Float32,
    target: npt.NDArray[np.int64] | None,
    counter_target: npt.NDArray[np.int64] | None,
    **options: Any,
) -> tuple[Explanation, npt.NDArray[np.int64]]:
    """Explains why the classifier gives class `target`, or why it does not.

    An image that is of class `target` is led to `counter_target`, by default its runner-up; one
    that is not is led to `target`.

    Args:
        explainer: Of the classifier.
        images: [N, C, S, S]; clipped to [-1, 1], for noise that was added.
        target: [N] classes explained; None: those predicted.
        counter_target: [N] classes to reach from `target`, or None.
        **options: Of `Explainer.explain`.

    Returns:
        The explanation, and +1 or -1 an image [N]: whether what changes speaks for `target`.

    Raises:
        ValueError: A class is out of range.
    """
    count = explainer.model.config.num_classes
    for name, classes in (("target", target), ("counter_target", counter_target)):
        if classes is not None and ((classes < 0) | (classes >= count)).any():
            bad = classes[(classes < 0) | (classes >= count)][0]
            raise ValueError(f"{name} must be a class in 0..{count - 1}, got {bad}")
    pictures = np.clip(np.ascontiguousarray(images, dtype=np.float32), -1, 1)
    predicted = np.asarray(explainer.classifier(np.nan_to_num(pictures))).argmax(axis=1)
    wanted: list[int | None] = [None] * len(pictures)
    sign = np.ones(len(pictures), dtype=np.int64)
    for i, label in enumerate(predicted):
        if target is not None and target[i] != label:
            wanted[i], sign[i] = int(target[i]), -1
        elif counter_target is not None:
            wanted[i] = int(counter_target[i])
    return explainer.explain(pictures, target=wanted, **options).numpy(), sign
