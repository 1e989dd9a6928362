# SPDX-License-Identifier: Apache-2.0
"""Calls of the classifier to be explained, with the arrays that an explanation works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arrays import Float32, Kind, as_kind, kind_of, like
from .classifier import Classifier
from .errors import ClassifierError
from .model import CAEConfig


@dataclass(frozen=True)
class ClassifierCalls:
    """A classifier for the images of one model, as one user brought them.

    Attributes:
        classifier: Is called.
        config: Of the model.
        template: Images of the user: a classifier without a wish gets arrays of their kind, on
            their device.
    """

    classifier: Classifier
    config: CAEConfig
    template: Any

    @property
    def kind(self) -> Kind:
        """Of the arrays that the classifier gets."""
        return self.classifier.arrays or kind_of(self.template)

    def to_host(self, images: Any) -> Float32:
        """Images [m, C, S, S] of the backend -> logits [m, K], NumPy."""
        if self.classifier.arrays is None:
            same = kind_of(images) == self.kind
            images = as_kind(images, self.kind) if same else like(images, self.template)
        logits = self.classifier(images)
        self._check(logits)
        return logits

    def on_device(self, images: Any) -> Any:
        """Images [m, C, S, S] in device memory -> logits [m, K]: a tensor, if it takes tensors."""
        if self.kind != "torch":
            return self.to_host(images)
        logits = self.classifier.on_device(as_kind(images, "torch"))
        self._check(logits)
        return logits

    def _check(self, logits: Any) -> None:
        if logits.shape[1] != self.config.num_classes:
            raise ClassifierError(
                f"classifier {self.classifier.name} returns {logits.shape[1]} logits per image, "
                f"the model has {self.config.num_classes} classes "
                f"{list(self.config.class_names)}"
            )
