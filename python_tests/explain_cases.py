# SPDX-License-Identifier: Apache-2.0
"""A toy model with paths that flip, for the tests of the explainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import cae_fast as cf
from cae_fast.demo import model_folder
from cae_fast.testing import random_images, toy_model

Images = npt.NDArray[np.float32]
SOURCE, TARGET, OTHER = 0, 1, 2


class PathClassifier:
    """Knows the paths: class 0 for the images and what is near a start, class 1 near an end.

    The logit of class 1 is the share of the way from start to end that a picture has gone, shifted
    so that it wins at `flip`. Rows do not depend on their batch.
    """

    def __init__(
        self, images: Images, starts: Images, ends: Images, flip: float = 0.5, classes: int = 3
    ) -> None:
        self.images = images.astype(np.float64)
        self.starts = starts.astype(np.float64)
        self.ways = ends.astype(np.float64) - starts
        self.flip = flip
        self.classes = classes
        self.calls: list[int] = []

    def __call__(self, images: Any) -> npt.NDArray[np.float32]:
        self.calls.append(len(images))
        return np.array([self.row(np.asarray(image, np.float64)) for image in images], np.float32)

    def row(self, image: npt.NDArray[np.float64]) -> list[float]:
        logits = [0.0] * self.classes
        if np.abs(self.images - image).max(axis=(1, 2, 3)).min() == 0:
            return [2.0, 1.0] + [-5.0] * (self.classes - 2)
        rest = image - self.starts
        gone = (rest * self.ways).sum(axis=(1, 2, 3)) / (self.ways**2).sum(axis=(1, 2, 3))
        far = ((rest - gone[:, None, None, None] * self.ways) ** 2).sum(axis=(1, 2, 3))
        logits[TARGET] = 10.0 * float(gone[far.argmin()] - self.flip)
        logits[OTHER:] = [-5.0] * (self.classes - 2)
        return logits


class World:
    """Model, images, one end code per image, and a classifier that flips along each path."""

    def __init__(self, count: int = 9, flip: float = 0.5, **config: Any) -> None:
        self.model = toy_model(**config)
        self.images = random_images(self.model.config, count)
        generator = np.random.default_rng(5)
        plain = cf.Explainer(self.model, lambda images: np.zeros((len(images), 3)))
        codes = plain.encode(self.images).class_code
        self.ends = (codes + generator.normal(0, 1, codes.shape)).astype(np.float32)
        both = plain.path(self.images, self.ends, [0.0, 1.0])
        self.classifier = PathClassifier(
            self.images, both[:, 0], both[:, 1], flip, self.model.config.num_classes
        )

    def explainer(self, classifier: Any = None, **options: Any) -> cf.Explainer:
        return cf.Explainer(self.model, classifier or self.classifier, **options)

    def bank(self, count: int = 30) -> cf.CodeBank:
        """Random codes; a third of each class, every tenth row classified wrongly."""
        generator = np.random.default_rng(2)
        config = self.model.config
        labels = np.arange(count) % config.num_classes
        wrong = np.arange(count) % 10 == 9
        return cf.CodeBank(
            codes=generator.normal(0, 1, (count, config.code_dim)).astype(np.float32),
            names=[f"row{i}.png" for i in range(count)],
            groups=[f"group{i // 2}" for i in range(count)],
            labels=labels,
            predicted=np.where(wrong, (labels + 1) % config.num_classes, labels),
            class_names=config.class_names,
            model_sha256=self.model.sha256,
            classifier="toy",
        )


def bank_of_rows(bank: cf.CodeBank, rows: npt.NDArray[np.int64]) -> cf.CodeBank:
    """A bank of some of a bank's rows."""
    return cf.CodeBank(
        codes=bank.codes[rows],
        names=[bank.names[row] for row in rows],
        groups=[bank.groups[row] for row in rows],
        labels=bank.labels[rows],
        predicted=bank.predicted[rows],
        class_names=bank.class_names,
        model_sha256=bank.model_sha256,
    )


def constant(row: list[float]) -> Any:
    """A classifier that says the same of every image."""
    return lambda images: np.tile(np.array(row, dtype=np.float32), (len(images), 1))


#: Fields with one row per image that are compared bit by bit.
FIELDS = (
    "status",
    "counterfactual",
    "reconstruction",
    "difference",
    "saliency",
    "t_flip",
    "bracket",
    "source_class",
    "target_class",
    "reached_class",
    "logits_source",
    "logits_counterfactual",
    "evaluations",
    "exemplar",
    "reconstructed_class",
    "searched_again",
)


def assert_same(one: cf.Explanation, other: cf.Explanation) -> None:
    """Both say the same, bit for bit."""
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for a, b in zip(one.path_t + one.path_logits, other.path_t + other.path_logits, strict=True):
        np.testing.assert_array_equal(a, b)
    for row in np.flatnonzero(one.searched_again):
        np.testing.assert_array_equal(one.second_path[row], other.second_path[row])


def digits_explainer(classifier: Any = None, **options: Any) -> cf.Explainer:
    """The bundled digits on the CPU; `classifier` in the place of the bundled one."""
    folder = model_folder("digits")
    return cf.Explainer(
        cf.CAE.load(folder / "model.safetensors"),
        cf.Classifier.load(folder / "classifier.onnx") if classifier is None else classifier,
        bank=folder / "bank.csv",
        backend="cpu",
        **options,
    )
