# SPDX-License-Identifier: Apache-2.0
"""The embedded CPU backend: the compiled engine, NumPy arrays in and out."""

from __future__ import annotations

import numpy as np

from .. import _backend, ops
from ..arrays import Float32, Int32
from ..memory import try_halves
from ..model import CAE
from .base import CodeArray, DecodeSession


class NativeBackend:
    """:class:`~cae_fast.backends.base.Backend` on the compiled engine, float32."""

    name = "cpu"
    device = "cpu"
    dtype = "float32"
    coarse_batch: int | None = 1  # on a CPU every decode costs its full time

    def __init__(self, model: CAE, *, max_batch: int, exact: bool = False) -> None:
        """Packs the weights for this processor.

        Args:
            model: Configuration and weights.
            max_batch: The most images or path points in flight; fewer where their buffers do not
                fit, as the attribute then says.
            exact: Convolve by direct sums instead of Winograd's filtering.

        Raises:
            OutOfMemory: The weights and buffers for one image do not fit.
        """
        self.precision = "exact" if exact else "fp32"
        config, weights = model.config.to_dict(), dict(model.weights)

        def make(limit: int) -> tuple[int, _backend.Engine]:
            return limit, _backend.Engine(config, weights, max_batch=limit, exact=exact)

        self.max_batch, self._engine = try_halves(
            make, max_batch, what="the weights and buffers of the model"
        )

    def encode(self, images: Float32) -> tuple[Float32, Float32]:
        """Individual codes [N, 4w, S / 4, S / 4] and class codes [N, D]."""
        return self._engine.encode(images)

    def encode_class(self, images: Float32) -> Float32:
        """Class codes [N, D]."""
        return self._engine.encode_class(images)

    def decode(self, individual: Float32, class_code: CodeArray, image_index: Int32) -> Float32:
        """Images [M, C, S, S]."""
        codes = np.ascontiguousarray(class_code, dtype=np.float32)
        return self._engine.decode(individual, codes, image_index)

    def lerp_codes(self, start: CodeArray, end: CodeArray, t: Float32) -> Float32:
        """Class codes [N, D] on straight paths."""
        return ops.lerp_codes(start, end, t)

    def session(self, individual: Float32, vertices: CodeArray, grid: int) -> DecodeSession:
        """Paths of a batch; what path points share is done here, once."""
        lines = np.ascontiguousarray(vertices, dtype=np.float32)
        return self._engine.session(individual, lines, grid)
