# SPDX-License-Identifier: Apache-2.0
"""Classifiers of digits for which first paths begin on the wrong side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from explain_cases import digits_explainer

import cae_fast as cf
from cae_fast.demo import model_folder

SEVEN = 7
_ASTRAY = slice(0, 5)
_NEAR = 0.01  # mean over pixels; to the originals it is 0.05 and more


def samples() -> npt.NDArray[np.float32]:
    files = sorted((model_folder("digits") / "samples").glob("*.png"))
    images: npt.NDArray[np.float32] = cf.load_images(files, size=32, channels=1)
    return images


class SeesSevens:
    """The bundled classifier, but near some reconstructions it sees sevens."""

    def __init__(self, images: npt.NDArray[np.float32]) -> None:
        self.real = cf.Classifier.load(model_folder("digits") / "classifier.onnx")
        plain = digits_explainer()
        codes = plain.encode(images[_ASTRAY])
        self.wrong = plain.decode(codes.individual, codes.class_code)

    def __call__(self, pictures: Any) -> npt.NDArray[np.float32]:
        pictures = np.asarray(pictures)
        logits = np.array(self.real(pictures))
        far = [np.abs(self.wrong - one).mean(axis=(1, 2, 3)).min() for one in pictures]
        logits[:, SEVEN] += 12 * np.exp(-((np.array(far) / _NEAR) ** 2))
        return logits


class Softly:
    """A classifier whose probabilities are nearer to each other."""

    def __init__(self, classifier: Any, by: float) -> None:
        self.classifier, self.by = classifier, by

    def __call__(self, pictures: Any) -> npt.NDArray[np.float32]:
        return np.asarray(self.classifier(pictures), dtype=np.float32) / np.float32(self.by)
