# SPDX-License-Identifier: Apache-2.0
"""A small residual network for classification, the baseline that `train_classifier` trains."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

STAGES = (1, 2, 4, 4)  # widths, as multiples of the first


class PreActivationBlock(nn.Module):
    """Residual block, norm and activation first; a 1x1 convolution where shapes change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Creates the block's layers."""
        super().__init__()
        self.norm0 = nn.BatchNorm2d(in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        hidden = torch.relu(self.norm0(x))
        short = x if self.shortcut is None else self.shortcut(hidden)
        hidden = torch.relu(self.norm1(self.conv0(hidden)))
        return cast(Tensor, short + self.conv1(hidden))


class ResidualClassifier(nn.Module):
    """Images [N, C, S, S], float32 in [-1, 1], to logits [N, K]; one block per stage."""

    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        """Creates a network for any image size of 8 or more."""
        super().__init__()
        widths = [width * stage for stage in STAGES]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.Sequential(
            *(
                PreActivationBlock(a, b, 1 if i == 0 else 2)
                for i, (a, b) in enumerate(zip(before, widths, strict=True))
            )
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, S, S] -> logits [N, K]."""
        return self.classify(self.stages(images)[-1])

    def stages(self, images: Tensor) -> list[Tensor]:
        """[N, C, S, S] -> what each stage gives, [N, C_i, S / 2^i, S / 2^i], first to last."""
        hidden = self.stem(images)
        found = []
        for block in self.blocks:
            hidden = block(hidden)
            found.append(hidden)
        return found

    def classify(self, last: Tensor) -> Tensor:
        """What the last stage gives -> logits [N, K]."""
        hidden = torch.relu(self.norm(last))
        return cast(Tensor, self.head(self.dropout(hidden.mean(dim=(2, 3)))))
