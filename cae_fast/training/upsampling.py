# SPDX-License-Identifier: Apache-2.0
"""The decoder's upsampling layers in 36 % of the multiplications, for training.

Of 25 taps on an upsampled image at most 9 meet different pixels. A pixel of the result sees 3 x 3
pixels of the small image through sums of the weights, which differ for the four places that it can
have in its 2 x 2 square: one 3 x 3 convolution with four times the channels, and a reordering. The
native engines do the same (`csrc/ops/upsample_taps.h`); this is its differentiable twin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Which of five taps fall on which of three pixels, [place in the square, pixel, tap].
_TAPS = (
    ((1, 1, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 0, 0, 1)),
    ((1, 0, 0, 0, 0), (0, 1, 1, 0, 0), (0, 0, 0, 1, 1)),
)


def upsample_conv_by_place(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`reference.upsample_conv`, differentiable in all three.

    Args:
        x: [N, C, H, W], H and W at least 2.
        weight: [O, C, 5, 5].
        bias: [O].

    Returns:
        [N, O, 2 H, 2 W].
    """
    out_channels, in_channels = weight.shape[:2]
    taps = torch.tensor(_TAPS, dtype=torch.float32, device=weight.device).to(weight.dtype)
    # In the weights' own precision: sums of rounded weights would be rounded twice.
    with torch.autocast(weight.device.type, enabled=False):
        summed = torch.einsum("ocyx,ary,bsx->oabcrs", weight, taps, taps)
    kernel = summed.reshape(4 * out_channels, in_channels, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    result = F.pixel_shuffle(F.conv2d(padded, kernel, bias.repeat_interleave(4)), 2)
    # Reflection reaches one small pixel further than repetition does, for the outermost tap of the
    # outermost row or column alone.
    result[:, :, 0] += _line(x[:, :, 1] - x[:, :, 0], weight[:, :, 0], "reflect")
    result[:, :, -1] += _line(x[:, :, -2] - x[:, :, -1], weight[:, :, 4], "reflect")
    result[:, :, :, 0] += _line(x[..., 1] - x[..., 0], weight[:, :, :, 0], "replicate")
    result[:, :, :, -1] += _line(x[..., -2] - x[..., -1], weight[:, :, :, 4], "replicate")
    return result


def _line(values: Tensor, weight: Tensor, border: str) -> Tensor:
    """Upsamples [N, C, L] and convolves it with [O, C, 5]: [N, O, 2 L]."""
    twice = F.interpolate(values, scale_factor=2.0, mode="nearest")
    return F.conv1d(F.pad(twice, (2, 2), mode=border), weight)
