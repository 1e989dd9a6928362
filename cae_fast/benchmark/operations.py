# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of the networks, counted: what the reference does, and what need be executed.

Both count floating-point operations of one image, 2 for a multiply-add, in convolutions and
linear layers; normalisation and the transforms of fast convolutions are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..model import CAEConfig

# Multiplies per output and pair of channels of the quickest algorithm that the engine may use, by
# (kernel, stride). 3x3: Winograd F(4x4, 3x3), 36 for 16 outputs. 4x4 at stride 2: four phases of
# 2x2 by F(4x4, 2x2), 100 for 16 outputs. Others: direct.
_FAST = {(3, 1): 36 / 16, (4, 2): 100 / 16}
# Nearest upsampling x2 before 5x5, per output (four outputs to a pixel of low resolution): 36
# products for the even phase of a 4x4 tile and 30 + 30 + 25 for the differences to the others.
_FAST_UPSAMPLED = (36 + 30 + 30 + 25) / 16 / 4


@dataclass(frozen=True)
class Layer:
    """One convolution, or linear layer (kernel 1, side 1).

    Attributes:
        kernel: Side of the kernel.
        inputs: Input channels.
        outputs: Output channels.
        side: Side of the output in pixels.
        stride: 1 or 2.
        upsampled: Whether nearest upsampling x2 goes before.
    """

    kernel: int
    inputs: int
    outputs: int
    side: int
    stride: int = 1
    upsampled: bool = False

    @property
    def reference(self) -> float:
        """Operations of the plain direct convolution."""
        return 2.0 * self.kernel**2 * self.inputs * self.outputs * self.side**2

    @property
    def executed(self) -> float:
        """Operations of the quickest algorithm known here."""
        taps = float(self.kernel**2)
        fast = _FAST_UPSAMPLED if self.upsampled else _FAST.get((self.kernel, self.stride), taps)
        return self.reference / taps * fast


@dataclass(frozen=True)
class Operations:
    """Operations of one image.

    Attributes:
        reference: Of plain direct convolutions.
        executed: Of the quickest algorithms known here, the floor of any implementation of them.
    """

    reference: float
    executed: float

    def __add__(self, other: Operations) -> Operations:
        """Both after one another."""
        return Operations(self.reference + other.reference, self.executed + other.executed)

    def __mul__(self, count: float) -> Operations:
        """The same `count` times."""
        return Operations(self.reference * count, self.executed * count)


def _sum(layers: Iterable[Layer]) -> Operations:
    listed = list(layers)
    return Operations(sum(x.reference for x in listed), sum(x.executed for x in listed))


def _halved(side: int) -> int:
    """Side after a 4x4 convolution at stride 2 with one pixel of padding."""
    return (side + 2 - 4) // 2 + 1


def _residual(config: CAEConfig) -> list[Layer]:
    wide = 4 * config.channels
    return [Layer(3, wide, wide, config.image_size // 4)] * (2 * config.num_blocks)


def _stem(config: CAEConfig) -> list[Layer]:
    """The first three layers of either encoder."""
    side, w = config.image_size, config.channels
    half = _halved(side)
    return [
        Layer(7, config.in_channels, w, side),
        Layer(4, w, 2 * w, half, stride=2),
        Layer(4, 2 * w, 4 * w, _halved(half), stride=2),
    ]


def encode_individual(config: CAEConfig) -> Operations:
    """The individual encoder."""
    return _sum([*_stem(config), *_residual(config)])


def encode_class(config: CAEConfig) -> Operations:
    """The class encoder."""
    wide = 4 * config.channels
    third = _halved(_halved(_halved(config.image_size)))
    tail = [
        Layer(4, wide, wide, third, stride=2),
        Layer(4, wide, wide, _halved(third), stride=2),
        Layer(1, wide, config.code_dim, 1),
    ]
    return _sum([*_stem(config), *tail])


def encode(config: CAEConfig) -> Operations:
    """Both encoders."""
    return encode_individual(config) + encode_class(config)


def decode(config: CAEConfig, *, shared_first: bool = False) -> Operations:
    """The decoder with its modulation.

    Args:
        config: Shape of the networks.
        shared_first: Leave the first convolution out of `executed`: it sees the individual code
            alone, so the points of a path share it.
    """
    w, side, hidden = config.channels, config.image_size, config.modulation_width
    wide = 4 * w
    modulation = [
        Layer(1, config.code_dim, hidden, 1),
        Layer(1, hidden, hidden, 1),
        Layer(1, hidden, config.num_blocks * 16 * w, 1),
    ]
    rest = [
        Layer(5, wide, 2 * w, side // 2, upsampled=True),
        Layer(5, 2 * w, w, side, upsampled=True),
        Layer(7, w, config.in_channels, side),
    ]
    total = _sum([*modulation, *_residual(config), *rest])
    shared = _residual(config)[0].executed if shared_first else 0.0
    return Operations(total.reference, total.executed - shared)


def explain(config: CAEConfig, decodes: float) -> Operations:
    """An explanation whose exemplar's code is known: both encoders, `decodes` points of a path."""
    first = Operations(0.0, _residual(config)[0].executed)
    return encode(config) + first + decode(config, shared_first=True) * decodes


def authors_procedure(config: CAEConfig, points: int = 6) -> Operations:
    """The authors' script: both encoders for image and reference, `points` decodes."""
    return encode(config) * 2 + decode(config) * points
