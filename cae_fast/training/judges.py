# SPDX-License-Identifier: Apache-2.0
"""Classifiers in training: the one to be explained, and the discriminator's head."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..class_names import agree
from ..classifier import Classifier
from ..errors import ClassifierError
from .pipeline import ImageStore

_BATCH = 64


def load_classifier(
    given: str | os.PathLike[str] | Callable[[Any], Any], class_names: Sequence[str]
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], str]:
    """The classifier to be explained, and its name.

    Args:
        given: A file or `module:function`, a `cf.Classifier`, or a callable from NumPy images to
            logits.
        class_names: Of the data.

    Raises:
        ClassifierError: It cannot be loaded, or its class names disagree with those of the data.
    """
    loaded: Any = given if callable(given) else Classifier.load(given)
    names = getattr(loaded, "labels", None)
    if names is not None:
        agree({"data": class_names, "classifier": names}, error=ClassifierError)
    said = getattr(loaded, "name", None) or getattr(loaded, "__name__", type(loaded).__name__)
    return loaded, str(said)


def classify_store(
    classifier: Callable[[NDArray[np.float32]], Any], store: ImageStore, num_classes: int
) -> NDArray[np.int64]:
    """Predicted class of every image [N], int64.

    Raises:
        ClassifierError: The logits are not [N, K] or not finite.
    """
    parts = []
    for start in range(0, len(store), _BATCH):
        images = store.images(range(start, min(start + _BATCH, len(store)))).numpy()
        parts.append(checked_logits(classifier(images), len(images), num_classes).argmax(axis=1))
    return np.concatenate(parts).astype(np.int64)


def checked_logits(logits: Any, count: int, num_classes: int) -> NDArray[np.float32]:
    """Logits as an array [N, K].

    Raises:
        ClassifierError: Another shape, or NaN or Inf in it.
    """
    array = np.asarray(logits, dtype=np.float32)
    if array.shape != (count, num_classes):
        raise ClassifierError(
            f"the classifier must give logits [{count}, {num_classes}], got {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ClassifierError("the classifier gave NaN or Inf for images of the data")
    return array


def as_torch(
    classifier: Callable[[NDArray[np.float32]], Any], num_classes: int
) -> Callable[[Tensor], Tensor]:
    """Lets a NumPy classifier judge torch images."""

    def classify(images: Tensor) -> Tensor:
        array = np.ascontiguousarray(images.detach().float().cpu().numpy())
        return torch.from_numpy(checked_logits(classifier(array), len(array), num_classes))

    return classify


def discriminator_head(discriminator: nn.Module) -> Callable[[Tensor], Tensor]:
    """The discriminator's class logits, without dropout."""

    def classify(images: Tensor) -> Tensor:
        training = discriminator.training
        discriminator.eval()
        classes: Tensor = discriminator(images)[1]
        discriminator.train(training)
        return classes

    return classify
