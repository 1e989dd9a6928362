# SPDX-License-Identifier: Apache-2.0
"""A torch module to be explained, for the tests of the search on the device."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")


class Flip(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Random logits, linear in the pictures; as sums of doubles they hardly depend on the batch."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(256, outputs, generator=generator))

    def forward(self, images: Any) -> Any:
        return (images.flatten(1).double() @ self.weight.double()).to(images.dtype)
