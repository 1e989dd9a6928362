# SPDX-License-Identifier: Apache-2.0
"""Sample images of the demo models: real digits, and blood cells that the model made itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..classifier_outputs import softmax
from ..data import ImageDataset
from ..explainer import Explainer
from ..images import to_uint8
from ..model import CAE

_CONFIDENT = 0.95
_TRIED_PER_CLASS = 60
# Digits that people mistake for each other.
_DIGIT_PAIRS = ("38", "38", "38", "83", "49", "94", "71", "56", "60", "27", "08", "13")


@dataclass(frozen=True)
class Sample:
    """A sample image.

    Attributes:
        name: File name.
        pixels: [H, W, C], uint8.
        target: Class name that the demo explains it towards; None: the runner-up.
        origin: What it was made of.
    """

    name: str
    pixels: NDArray[np.uint8]
    target: str | None
    origin: str


def digit_samples(
    test: ImageDataset, classify: Callable[[Any], NDArray[np.float32]], size: int
) -> list[Sample]:
    """The first real test digits that the classifier gets right, without looking further.

    Args:
        test: Test images; class names are the digits.
        classify: Images to logits.
        size: Side of the images.
    """
    samples: list[Sample] = []
    taken: set[int] = set()
    for pair in _DIGIT_PAIRS:
        digit, target = pair[0], pair[1]
        for index in np.flatnonzero(test.labels == test.class_names.index(digit)):
            image = test.load([int(index)], size=size, channels=1)
            if int(index) not in taken and classify(image)[0].argmax() == test.labels[index]:
                taken.add(int(index))
                name = f"{len(samples):02d}_{digit}_as_{target}.png"
                origin = f"test/{digit}/{Path(test.files[index]).name}"
                samples.append(Sample(name, to_uint8(image)[0], target, origin))
                break
    return samples


def donor_samples(
    model: CAE,
    explainer: Explainer,
    classify: Callable[[Any], NDArray[np.float32]],
    test: ImageDataset,
    *,
    per_class: int,
    exemplars: int,
    seed: int,
) -> list[Sample]:
    """Individual codes of test images decoded with class codes of others.

    Of each donor class, swaps are drawn at random; kept are those that the classifier is sure of
    (0.95), that an explanation flips with the nearest exemplar and with several, and whose
    reconstruction is nearest to them.

    Args:
        model: The model.
        explainer: Explains with the model, its classifier and bank.
        classify: Images to logits.
        test: Test images.
        per_class: Samples of each donor class.
        exemplars: That the demo averages.
        seed: Of the drawing.
    """
    rng = np.random.default_rng([seed, 7])
    side, channels = model.config.image_size, model.config.in_channels
    codes = explainer.encode(test.load(size=side, channels=channels))
    individual = np.asarray(codes.individual)
    class_code = np.asarray(codes.class_code)
    samples: list[Sample] = []
    used: set[int] = set()
    for label, donor_class in enumerate(test.class_names):
        donors = rng.choice(np.flatnonzero(test.labels == label), _TRIED_PER_CLASS)
        others = rng.choice(np.flatnonzero(test.labels != label), _TRIED_PER_CLASS)
        swapped = np.asarray(explainer.decode(individual[others], class_code[donors]))
        pixels = to_uint8(swapped)
        images = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
        logits = classify(images)
        sure = softmax(logits)[:, label] >= _CONFIDENT
        nearest = explainer.explain(images, exemplars="nearest", k=1, second_try=False)
        result = explainer.explain(images, exemplars="nearest", k=exemplars, second_try=False)
        error = np.abs(np.asarray(result.reconstruction) - images).mean(axis=(1, 2, 3))
        flipped = np.asarray(result.status) == "flipped"
        good = sure & flipped & (np.asarray(nearest.status) == "flipped")
        order = [int(i) for i in np.argsort(error) if good[i]]
        kept = _distinct(order, others, test.labels[others], used, per_class)
        for i in kept:
            used.add(int(others[i]))
            own = test.class_names[test.labels[others[i]]]
            name = f"{len(samples):02d}_{own}_with_{donor_class}_code.png"
            origin = f"individual code of {test.files[others[i]]}, class code of "
            samples.append(Sample(name, pixels[i], None, origin + test.files[donors[i]]))
    return samples


def _distinct(
    order: Sequence[int],
    individuals: NDArray[np.int64],
    classes: NDArray[np.int64],
    used: set[int],
    count: int,
) -> list[int]:
    """The first `count` of different individuals, of different own classes where possible."""
    kept: list[int] = []
    for fresh_class in (True, False):
        for i in order:
            seen = {int(individuals[k]) for k in kept} | used
            seen_classes = {int(classes[k]) for k in kept}
            fits = not fresh_class or int(classes[i]) not in seen_classes
            if len(kept) < count and int(individuals[i]) not in seen and fits:
                kept.append(i)
    return kept


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Writes samples as PNG files into a new folder."""
    folder.mkdir()
    for sample in samples:
        grey = sample.pixels.shape[2] == 1
        Image.fromarray(sample.pixels[..., 0] if grey else sample.pixels).save(
            folder / sample.name, optimize=True
        )
