# SPDX-License-Identifier: Apache-2.0
"""The specification backend: plain torch, any device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import reference
from ..arrays import Float32, Int32
from ..errors import BackendUnavailable
from ..model import CAE
from .base import CodeArray

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class TorchBackend:
    """:class:`~cae_fast.backends.base.Backend` on torch tensors.

    Every call works through `max_batch` rows at a time.
    """

    name = "torch"

    def __init__(self, model: CAE, *, device: str | None, dtype: str, max_batch: int) -> None:
        """Builds the networks on a device.

        Args:
            model: Configuration and weights.
            device: A torch device; None is the CPU.
            dtype: "float32" or "float64".
            max_batch: The most images in flight.

        Raises:
            BackendUnavailable: torch does not know the device or cannot use it.
        """
        try:
            self._device = torch.device(device or "cpu")
            self._module = model.module().to(device=self._device, dtype=_DTYPES[dtype]).eval()
        except (RuntimeError, AssertionError) as error:
            raise BackendUnavailable(
                f"torch cannot use device {device!r} ({str(error).splitlines()[0]}); "
                "give device='cpu' or one that torch lists"
            ) from error
        self._module.requires_grad_(False)
        self.device = str(self._device)
        self.dtype = dtype
        self.precision = "fp64" if dtype == "float64" else "fp32"
        self.max_batch = max_batch
        self.coarse_batch: int | None = 1 if self._device.type == "cpu" else None

    def encode(self, images: Float32) -> tuple[Tensor, CodeArray]:
        """Individual codes on the device, class codes as NumPy."""
        with _exact(self._device):
            pairs = [self._module.encode(part) for part in self._parts(images)]
        return torch.cat([pair[0] for pair in pairs]), _host(torch.cat([pair[1] for pair in pairs]))

    def encode_class(self, images: Float32) -> CodeArray:
        """Class codes as NumPy."""
        with _exact(self._device):
            return _host(
                torch.cat([self._module.encode_class(part) for part in self._parts(images)])
            )

    def decode(self, individual: Any, class_code: CodeArray, image_index: Int32) -> Tensor:
        """Images on the device."""
        codes = self._tensor(class_code)
        rows = torch.as_tensor(image_index, device=self._device).long()
        source = self._tensor(individual)
        with _exact(self._device):
            return torch.cat(
                [
                    self._module.decode(source[rows[part]], codes[part])
                    for part in self._slices(len(rows))
                ]
            )

    def lerp_codes(self, start: CodeArray, end: CodeArray, t: Float32) -> CodeArray:
        """Class codes [N, D] on straight paths."""
        points = reference.lerp_codes(self._tensor(start), self._tensor(end), self._tensor(t))
        return _host(points)

    def session(self, individual: Any, vertices: CodeArray, grid: int) -> _TorchSession:
        """Paths of a batch."""
        return _TorchSession(self, self._tensor(individual), self._tensor(vertices), grid)

    def _tensor(self, array: Any) -> Tensor:
        if isinstance(array, np.ndarray):
            array = np.require(array, requirements="W")  # torch warns of read-only memory
        return torch.as_tensor(array, dtype=_DTYPES[self.dtype], device=self._device)

    def _slices(self, count: int) -> list[slice]:
        return [slice(at, at + self.max_batch) for at in range(0, count, self.max_batch)]

    def _parts(self, images: Float32) -> Iterator[Tensor]:
        return (self._tensor(images[part]) for part in self._slices(len(images)))


class _TorchSession:
    """Individual codes and polylines on the device."""

    def __init__(
        self, backend: TorchBackend, individual: Tensor, vertices: Tensor, grid: int
    ) -> None:
        self._backend = backend
        self._individual = individual
        self._vertices = vertices
        self._grid = grid

    def decode(self, image_index: Int32, step: Int32) -> Tensor:
        """Images [M, C, S, S] on the device."""
        device = self._vertices.device
        codes = reference.path_codes(
            self._vertices,
            torch.as_tensor(image_index, device=device),
            torch.as_tensor(step, device=device),
            self._grid,
        )
        return self._backend.decode(self._individual, codes, image_index)  # type: ignore[arg-type]


def _host(codes: Tensor) -> CodeArray:
    array: CodeArray = np.ascontiguousarray(codes.cpu().numpy())
    return array


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No gradients; on CUDA full float32 products and one algorithm every time."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
            )
        yield
