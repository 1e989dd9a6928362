# SPDX-License-Identifier: Apache-2.0
"""The operations in plain torch: the specification every other implementation is tested against.

Any floating dtype and any torch device; tests run them in float64. Layout is [N, C, H, W]; codes
are [N, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5


def lerp_codes(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Point on the straight guided path: (1 - t) * start + t * end, exact at both ends.

    Args:
        start: Class codes at t = 0, [N, D].
        end: Class codes at t = 1, [N, D].
        t: Positions, [N], in [0, 1].

    Returns:
        Class codes [N, D].
    """
    weight = t.to(start.dtype)[:, None]
    return (1 - weight) * start + weight * end


def path_codes(vertices: Tensor, image_index: Tensor, step: Tensor, grid: int) -> Tensor:
    """Class codes at t = step / grid along polylines, t being the share of arc length.

    Args:
        vertices: Polylines of class codes, [N, V, D], V >= 1; one vertex is a path that
            stays there.
        image_index: Polyline of each point, int [M].
        step: Grid position of each point, int [M], in [0, grid].
        grid: Number of grid intervals, >= 1.

    Returns:
        Class codes [M, D]; the first vertex where a polyline has length zero.
    """
    lines = vertices.index_select(0, image_index.long())
    t = step.to(torch.float64) / grid
    count = lines.shape[1]
    if count == 1:
        return lines[:, 0]
    if count == 2:
        return lerp_codes(lines[:, 0], lines[:, 1], t)
    lengths = (lines[:, 1:] - lines[:, :-1]).to(torch.float64).norm(dim=2)
    ends = torch.cat([torch.zeros_like(lengths[:, :1]), lengths.cumsum(dim=1)], dim=1)
    position = t * ends[:, -1]
    segment = torch.searchsorted(ends, position[:, None], right=True)[:, 0] - 1
    segment = segment.clamp(0, count - 2)
    rows = torch.arange(lines.shape[0], device=lines.device)
    length = lengths[rows, segment]
    local = torch.where(
        length > 0, (position - ends[rows, segment]) / length.clamp(min=1e-300), torch.zeros_like(t)
    ).clamp(0, 1)
    local = torch.where((step == grid) & (ends[:, -1] > 0), torch.ones_like(local), local)
    segment = torch.where((step == grid) & (ends[:, -1] > 0), count - 2, segment)
    return lerp_codes(lines[rows, segment], lines[rows, segment + 1], local)


def conv2d_reflect(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding: int
) -> Tensor:
    """Convolution with reflection padding: x [N, C, H, W], weight [O, C, k, k]."""
    if padding:
        x = F.pad(x, (padding,) * 4, mode="reflect")
    return F.conv2d(x, weight, bias, stride=stride)


def instance_norm(x: Tensor) -> Tensor:
    """(x - mean) / sqrt(biased variance + 1e-5) over H and W of each channel of each sample."""
    return F.instance_norm(x, eps=NORM_EPS)


def adain(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive instance normalisation: scale * instance_norm(x) + shift; shift, scale [N, C]."""
    return instance_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """(x - mean) / (unbiased std + 1e-5) over C, H, W of each sample, then gamma[c], beta[c]."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    std = x.std(dim=(1, 2, 3), keepdim=True, unbiased=True)
    return (x - mean) / (std + NORM_EPS) * gamma[None, :, None, None] + beta[None, :, None, None]


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest upsampling x2, then a 5x5 convolution with reflection padding 2."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return conv2d_reflect(upsampled, weight, bias, padding=2)


def difference_saliency(counterfactual: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Signed difference and saliency map of two image batches.

    Args:
        counterfactual: Images [N, C, H, W].
        reference: What they are compared with, same shape.

    Returns:
        difference [N, C, H, W] = counterfactual - reference, and saliency [N, H, W], the sum over
        channels of its absolute value divided by its maximum; zeros where that maximum is 0.
    """
    difference = counterfactual - reference
    magnitude = difference.abs().sum(dim=1)
    peak = magnitude.amax(dim=(1, 2), keepdim=True)
    saliency = torch.where(peak > 0, magnitude / torch.where(peak > 0, peak, 1), 0)
    return difference, saliency
