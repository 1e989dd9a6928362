# SPDX-License-Identifier: Apache-2.0
"""The GPU engine through probe.cpp: queues work on a stream, never waits for it."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from record import BUILD

from cae_fast.model import CAE

LIBRARY = BUILD / "libprobe.so"
_FIELDS = (
    "image_size",
    "in_channels",
    "channels",
    "num_blocks",
    "code_dim",
    "modulation_width",
)


def tile_agrees(
    cluster: int, tile: tuple[int, int], *, device: int = 0, path: Path = LIBRARY
) -> None:
    """Convolves by warpgroups in a tile (pixels, columns) and by the portable path.

    Raises OSError without the library, RuntimeError where the two differ or a launch fails.
    """
    library = ctypes.CDLL(str(path))
    library.probe_error.restype = ctypes.c_char_p
    if library.probe_tile_agrees(*map(c_int, (device, cluster, *tile))):
        raise RuntimeError(library.probe_error().decode())


class Probe:
    """An engine for one model; arguments are torch tensors on its GPU, float32, contiguous."""

    def __init__(self, model: CAE, max_batch: int, *, device: int = 0, path: Path = LIBRARY):
        """Packs the weights. Raises OSError without the library, RuntimeError if it refuses."""
        self._library = ctypes.CDLL(str(path))
        self._library.probe_error.restype = ctypes.c_char_p
        self._library.probe_open.restype = c_void_p
        sizes = (c_int64 * 6)(*(getattr(model.config, name) for name in _FIELDS))
        arrays = [np.ascontiguousarray(array) for array in model.weights.values()]
        names = (ctypes.c_char_p * len(arrays))(*(name.encode() for name in model.weights))
        data = (c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        shapes = (c_int64 * (4 * len(arrays)))(
            *(size for array in arrays for size in (*array.shape, 0, 0, 0, 0)[:4])
        )
        ranks = (c_int * len(arrays))(*(array.ndim for array in arrays))
        self._handle = self._library.probe_open(
            sizes,
            c_int(len(arrays)),
            names,
            data,
            shapes,
            ranks,
            c_int64(max_batch),
            c_int(device),
        )
        if not self._handle:
            raise RuntimeError(self._library.probe_error().decode())

    def close(self) -> None:
        """Frees the engine."""
        self._library.probe_close(c_void_p(self._handle))
        self._handle = None

    def encode(self, images: Any, individual: Any, code: Any, stream: int) -> None:
        """Images [N, C, S, S] -> individual [N, 4w, S/4, S/4], code [N, D]."""
        self._call("probe_encode", images, len(images), individual, code, stream)

    def decode(self, individual: Any, code: Any, images: Any, stream: int) -> None:
        """Image i of individual i and code i: all that a decode takes."""
        self._call("probe_decode", individual, code, len(code), images, stream)

    def hold(self, individual: Any, stream: int) -> None:
        """Prepares images for `path`."""
        self._call("probe_hold", individual, len(individual), stream)

    def path(self, code: Any, images: Any, stream: int) -> None:
        """Points of the first held image: the first convolution is not repeated."""
        self._call("probe_path", code, len(code), images, stream)

    def layer_shape(self, index: int) -> tuple[int, ...] | None:
        """Kind, inputs, columns, height, width of a layer whose tile is chosen; None: no more."""
        shape = (c_int64 * 5)()
        refused = self._library.probe_layer_shape(c_void_p(self._handle), c_int(index), shape)
        return None if refused else tuple(shape)

    def layer(self, index: int, count: int, tile: tuple[int, int], stream: int) -> None:
        """That layer of so many images, on what the last decode left; tile: pixels, columns."""
        self._call("probe_layer", count, index, *tile, stream)

    def _call(self, name: str, *arguments: Any) -> None:
        *given, stream = arguments
        values = [
            c_int64(value) if isinstance(value, int) else c_void_p(value.data_ptr())
            for value in given
        ]
        function = getattr(self._library, name)
        if function(c_void_p(self._handle), *values, c_void_p(stream)):
            raise RuntimeError(self._library.probe_error().decode())
