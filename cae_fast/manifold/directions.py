# SPDX-License-Identifier: Apache-2.0
"""Global explanation: what changes in images, and for the classifier, along each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.arrays import Float32, to_numpy
from cae_fast.backends import Backend
from cae_fast.classifier import Classifier
from cae_fast.classifier_outputs import softmax
from cae_fast.manifold.measures import Principal

STEPS = 9
MOST_DIRECTIONS = 4
_SWEEP = (0.02, 0.98)  # quantiles of the bank's coordinates between which a strip runs


@dataclass(frozen=True)
class Strip:
    """One image, its code moved along one principal direction.

    Attributes:
        direction: Index of the direction, from 0.
        share: Of the variance, in [0, 1].
        name: Of the image.
        positions: Coordinates along the direction, [T], in units of the bank's standard deviation
            from its mean.
        own: The image's own coordinate, in the same units.
        images: Decoded, [T, C, S, S].
        probs: Of the classifier, [T, K]; None without one.
    """

    direction: int
    share: float
    name: str
    positions: npt.NDArray[np.float64]
    own: float
    images: Float32
    probs: npt.NDArray[np.float64] | None


def make_strips(
    backend: Backend,
    classifier: Classifier | None,
    codes: npt.NDArray[np.floating[Any]],
    images: Float32,
    names: Sequence[str],
    *,
    directions: int = MOST_DIRECTIONS,
) -> list[Strip]:
    """Decodes images with their codes moved along the principal directions of a bank.

    A code keeps all its other coordinates; the one that moves runs from the 2nd to the 98th
    percentile of the bank's, evenly.

    Args:
        backend: The networks.
        classifier: Asked what it makes of each, or None.
        codes: Of the bank, [B, D].
        images: To be moved, [N, C, S, S].
        names: Theirs.
        directions: At most so many; only those with variance are taken.

    Returns:
        Strips by direction, then image.
    """
    principal = Principal.of(codes)
    bank = principal.project(codes)
    taken = min(directions, int((principal.variance > 0).sum()))
    strips: list[Strip] = []
    if not len(images) or not taken:
        return strips
    per_image = []
    for i, image in enumerate(images):
        individual, own = backend.encode(np.ascontiguousarray(image[None]))
        own = principal.project(own)[0]
        for j in range(taken):
            low, high = (float(np.quantile(bank[:, j], q)) for q in _SWEEP)
            sweep = np.linspace(low, high, STEPS)
            moved = np.repeat(own[None], STEPS, axis=0)
            moved[:, j] = sweep
            decoded = _decode(backend, individual, principal.restore(moved).astype(np.float32))
            deviation = float(np.sqrt(principal.variance[j]))
            per_image.append(
                Strip(
                    direction=j,
                    share=float(principal.shares[j]),
                    name=names[i],
                    positions=sweep / deviation,
                    own=float(own[j]) / deviation,
                    images=decoded,
                    probs=None if classifier is None else softmax(classifier(decoded)),
                )
            )
    return sorted(per_image, key=lambda strip: strip.direction)


def _decode(backend: Backend, individual: Any, codes: Float32) -> Float32:
    parts = []
    for first in range(0, len(codes), backend.max_batch):
        part = np.ascontiguousarray(codes[first : first + backend.max_batch])
        index = np.zeros(len(part), dtype=np.int32)
        parts.append(to_numpy(backend.decode(individual, part, index)))
    images: Float32 = np.concatenate(parts).astype(np.float32)
    return images
