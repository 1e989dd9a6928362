# SPDX-License-Identifier: Apache-2.0
"""What every backend offers to the explainer.

Images and individual codes are the backend's own arrays: NumPy, torch, or the native engine's in
the memory of a GPU. :mod:`cae_fast.arrays` turns each into the others.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import Float32, Int32

CodeArray: TypeAlias = npt.NDArray[np.floating[Any]]


class DecodeSession(Protocol):
    """Guided paths of a batch of images, ready to be decoded anywhere."""

    def decode(self, image_index: Int32, step: Int32) -> Any:
        """Images [M, C, S, S] at t = step / grid of the paths of `image_index`, both int32 [M]."""


class Backend(Protocol):
    """The networks on one device.

    Attributes:
        name: "cpu", "cuda", "torch".
        device: Where it runs: "cpu", "cuda:0", or "emu", the emulator of a GPU.
        dtype: Arithmetic: "float16" (operands; sums, codes and images are float32), "float32" or
            "float64".
        precision: "fp16", "fp32", "exact" (fp32 by direct sums where it could be otherwise) or
            "fp64".
        max_batch: The most images or path points in flight.
        coarse_batch: Points of an image's coarse scan that are decoded per round of the search, at
            least 1; None is as many as `max_batch` allows. 1 where a decode costs its share of a
            batch: nothing is decoded behind the first flip. None where a batch costs little more
            than one decode and a round costs time of its own. What is found does not depend on it.
    """

    name: str
    device: str
    dtype: str
    precision: str
    max_batch: int
    coarse_batch: int | None

    def encode(self, images: Float32) -> tuple[Any, CodeArray]:
        """Images [N, C, S, S] -> individual codes (own array) and class codes [N, D] (NumPy)."""

    def encode_class(self, images: Float32) -> CodeArray:
        """Images [N, C, S, S] -> class codes [N, D] (NumPy) only."""

    def decode(self, individual: Any, class_code: CodeArray, image_index: Int32) -> Any:
        """Images [M, C, S, S] of `individual[image_index]` with the class codes [M, D]."""

    def lerp_codes(self, start: CodeArray, end: CodeArray, t: Float32) -> CodeArray:
        """Class codes [N, D] at the positions `t` [N] of straight paths, both ends [N, D]."""

    def session(self, individual: Any, vertices: CodeArray, grid: int) -> DecodeSession:
        """Paths along the polylines `vertices` [N, V, D] of the individuals, on a grid of t."""
