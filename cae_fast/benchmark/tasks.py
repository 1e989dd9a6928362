# SPDX-License-Identifier: Apache-2.0
"""What is measured, on our side: encoding, decoding, explaining with random weights.

Time does not depend on the values of weights and pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Float32
from ..backends import default_max_batch, select_backend
from ..bank import CodeBank
from ..explainer import Explainer
from ..explanation import Explanation
from ..model import CAE
from ..testing import random_images

Arrays = tuple[Float32, ...]
# Where on the path the classifier of an explanation changes its mind: no point that a search looks
# at before the last.
_FLIP = 0.371
_BANK_ROWS = 64


@dataclass(frozen=True)
class NetworkTask:
    """A batch through both encoders, or through the decoder.

    Attributes:
        kind: "encode" or "decode".
        model: Configuration and weights.
        inputs: Images [N, C, S, S]; or individual codes [N, 4w, S / 4, S / 4], another for each
            class code of [N, D].
        ours: The native engine on these inputs.
    """

    kind: str
    model: CAE
    inputs: Arrays
    ours: Callable[[], Arrays]

    def first(self) -> Arrays:
        """The inputs of the first image."""
        return tuple(array[:1] for array in self.inputs)


def network_task(kind: str, model: CAE, batch: int) -> NetworkTask:
    """The task of `kind`, "encode" or "decode", for `batch` images."""
    engine = select_backend("cpu", model, max_batch=min(batch, default_max_batch(model.config)))
    images = random_images(model.config, batch)
    if kind == "encode":
        return NetworkTask(kind, model, (images,), lambda: engine.encode(images))
    generator = np.random.default_rng(1)
    individual = generator.standard_normal((batch, *model.config.individual_shape), np.float32)
    codes = generator.standard_normal((batch, model.config.code_dim), np.float32)
    index = np.arange(batch, dtype=np.int32)
    return NetworkTask(
        kind, model, (individual, codes), lambda: (engine.decode(individual, codes, index),)
    )


@dataclass(frozen=True)
class ExplainTask:
    """Explanations of one image, `batch` times over, with a bank and a classifier of no cost.

    Attributes:
        model: Configuration and weights.
        image: The image, [1, C, S, S].
        reference: An image for those who must encode one, [1, C, S, S].
        exemplar: Class code [1, D] at the far end of the path.
        variants: How the flip is searched: name -> the explanation.
    """

    model: CAE
    image: Float32
    reference: Float32
    exemplar: Float32
    variants: dict[str, Callable[[], Explanation]]


def explain_task(model: CAE, batch: int, variants: dict[str, dict[str, Any]]) -> ExplainTask:
    """The task for `batch` images; `variants` hold arguments of `Explainer.explain`."""
    config = model.config
    image, reference = np.split(random_images(config, 2), 2)
    backend = select_backend("cpu", model)
    individual, code = backend.encode(image)
    rows = code + np.random.default_rng(2).standard_normal((_BANK_ROWS, config.code_dim))
    labels = np.arange(_BANK_ROWS) % config.num_classes
    names = [f"image {i}" for i in range(_BANK_ROWS)]
    bank = CodeBank(
        codes=rows.astype(np.float32),
        names=names,
        groups=names,
        labels=labels,
        predicted=labels,
        class_names=config.class_names,
        model_sha256=model.sha256,
    )
    usable = np.flatnonzero(labels == 1)
    nearest = usable[((bank.codes[usable] - code) ** 2).sum(axis=1).argmin()]
    exemplar = bank.codes[nearest : nearest + 1]
    index = np.zeros(2, dtype=np.int32)
    start, end = backend.decode(individual, np.concatenate([code, exemplar]), index)
    classifier = _projection(image[0], start, end, config.num_classes)
    explainer = Explainer(model, classifier, bank=bank, backend="cpu")
    images = np.repeat(image, batch, axis=0)

    def explanation(arguments: dict[str, Any]) -> Callable[[], Explanation]:
        asked: dict[str, Any] = {"target": 1, "exemplars": "nearest", "k": 1, "reach": 1}
        return lambda: explainer.explain(images, **asked, **arguments)

    named = {name: explanation(arguments) for name, arguments in variants.items()}
    return ExplainTask(model, image, reference, exemplar, named)


def search_variants(full: bool) -> dict[str, dict[str, Any]]:
    """Searches to measure, by name: arguments of `Explainer.explain`.

    Args:
        full: Also at the resolution of the authors' script, 0.2.
    """
    variants: dict[str, dict[str, Any]] = {"bisection": {"tolerance": 1 / 256}}
    if full:
        variants["bisection 0.2"] = {"tolerance": 0.2}
    if "search" in inspect.signature(Explainer.explain).parameters:
        guided = {f"margin{name[9:]}": dict(given) for name, given in variants.items()}
        variants = {name: {**given, "search": "bisection"} for name, given in variants.items()}
        variants |= {name: {**given, "search": "margin"} for name, given in guided.items()}
    return variants


def _projection(
    image: Float32, start: Float32, end: Float32, num_classes: int
) -> Callable[[Any], Float32]:
    """A classifier whose margin steepens and saturates as that of a sure network does.

    It looks at the pixels along the difference of both ends of the path, so costs nothing beside
    a decode. The image and `start` are of class 0, `end` of class 1; other classes are far off.
    """
    change, away = ((a - start).ravel().astype(np.float64) for a in (end, image))
    weight = change - away * (change @ away) / (away @ away)
    weight /= weight @ change
    offset = np.float32(weight @ start.ravel())
    direction = weight.astype(np.float32)

    def classify(images: Any) -> Float32:
        # einsum, not a matrix product: the threads of a BLAS would go on spinning beside ours.
        flat = np.asarray(images).reshape(len(images), -1)
        position = np.einsum("np,p->n", flat, direction) - offset
        logits = np.full((len(position), num_classes), -100, dtype=np.float32)
        logits[:, 1] = 5 * np.tanh(8 * (position - _FLIP))
        logits[:, 0] = -logits[:, 1]
        return logits

    return classify
