# SPDX-License-Identifier: Apache-2.0
"""The networks of class association embedding as torch modules (arXiv 2406.07961).

Parameter names are the tensor names of the model file
(:meth:`cae_fast.model.CAEConfig.tensor_shapes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from . import reference as ops

if TYPE_CHECKING:
    from .model import CAEConfig


class ReflectConv(nn.Conv2d):
    """Convolution with reflection padding that keeps (stride 1) or halves (stride 2) the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        """Creates a kernel x kernel convolution."""
        super().__init__(in_channels, out_channels, kernel, stride=stride)
        self.reflect = (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H', W']."""
        return ops.conv2d_reflect(
            x, self.weight, self.bias, stride=self.stride[0], padding=self.reflect
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose normalisation is chosen by the caller."""

    def __init__(self, channels: int) -> None:
        """Creates a block that keeps the number of channels."""
        super().__init__()
        self.conv0 = ReflectConv(channels, channels, 3)
        self.conv1 = ReflectConv(channels, channels, 3)

    def normalised(self, x: Tensor) -> Tensor:
        """The block of the individual encoder: instance norm after each convolution."""
        hidden = torch.relu(ops.instance_norm(self.conv0(x)))
        return x + ops.instance_norm(self.conv1(hidden))

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The block of the decoder: AdaIN with shift, scale [N, 2, C] after the convolutions."""
        hidden = torch.relu(ops.adain(self.conv0(x), shift[:, 0], scale[:, 0]))
        return x + ops.adain(self.conv1(hidden), shift[:, 1], scale[:, 1])


class ClassEncoder(nn.Module):
    """Image -> class code [N, code_dim]."""

    def __init__(self, config: CAEConfig) -> None:
        """Creates the encoder for a configuration."""
        super().__init__()
        w = config.channels
        self.conv0 = ReflectConv(config.in_channels, w, 7)
        self.conv1 = ReflectConv(w, 2 * w, 4, 2)
        self.conv2 = ReflectConv(2 * w, 4 * w, 4, 2)
        self.conv3 = ReflectConv(4 * w, 4 * w, 4, 2)
        self.conv4 = ReflectConv(4 * w, 4 * w, 4, 2)
        self.head = nn.Conv2d(4 * w, config.code_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, S, S] in [-1, 1] -> [N, code_dim]."""
        x = images
        for conv in (self.conv0, self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(conv(x))
        return cast(Tensor, self.head(x.mean(dim=(2, 3), keepdim=True)).flatten(1))


class IndividualEncoder(nn.Module):
    """Image -> individual code [N, 4 * channels, S / 4, S / 4]."""

    def __init__(self, config: CAEConfig) -> None:
        """Creates the encoder for a configuration."""
        super().__init__()
        w = config.channels
        self.conv0 = ReflectConv(config.in_channels, w, 7)
        self.conv1 = ReflectConv(w, 2 * w, 4, 2)
        self.conv2 = ReflectConv(2 * w, 4 * w, 4, 2)
        self.num_blocks = config.num_blocks
        for index in range(config.num_blocks):
            self.add_module(f"block{index}", ResidualBlock(4 * w))

    def block(self, index: int) -> ResidualBlock:
        """Residual block `index`, in [0, num_blocks)."""
        return cast(ResidualBlock, self.get_submodule(f"block{index}"))

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, S, S] in [-1, 1] -> [N, 4 * channels, S / 4, S / 4]."""
        x = images
        for conv in (self.conv0, self.conv1, self.conv2):
            x = torch.relu(ops.instance_norm(conv(x)))
        for index in range(self.num_blocks):
            x = self.block(index).normalised(x)
        return x


class Modulation(nn.Module):
    """Class code -> shift and scale of every residual convolution of the decoder."""

    def __init__(self, config: CAEConfig) -> None:
        """Creates the perceptron for a configuration."""
        super().__init__()
        self.shape = (config.num_blocks, 2, 2, 4 * config.channels)
        width = config.modulation_width
        self.linear0 = nn.Linear(config.code_dim, width)
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, config.num_blocks * 16 * config.channels)

    def forward(self, class_code: Tensor) -> tuple[Tensor, Tensor]:
        """[N, code_dim] -> shift, scale, each [N, num_blocks, 2, 4 * channels]."""
        hidden = torch.relu(self.linear1(torch.relu(self.linear0(class_code))))
        table = self.linear2(hidden).view(-1, *self.shape)
        return table[:, :, :, 0], table[:, :, :, 1]


class LayerNorm(nn.Module):
    """Normalisation over (C, H, W) of each sample with one gamma and beta per channel."""

    def __init__(self, channels: int) -> None:
        """Creates the affine parameters, [channels] each."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same shape."""
        return ops.layer_norm(x, self.gamma, self.beta)


class Decoder(nn.Module):
    """Individual code and modulation -> image."""

    def __init__(self, config: CAEConfig) -> None:
        """Creates the decoder for a configuration."""
        super().__init__()
        w = config.channels
        self.num_blocks = config.num_blocks
        for index in range(config.num_blocks):
            self.add_module(f"block{index}", ResidualBlock(4 * w))
        self.up0 = nn.Conv2d(4 * w, 2 * w, 5)
        self.up1 = nn.Conv2d(2 * w, w, 5)
        self.norm0 = LayerNorm(2 * w)
        self.norm1 = LayerNorm(w)
        self.out = ReflectConv(w, config.in_channels, 7)
        #: (x, weight, bias) -> result of an upsampling layer; training puts a quicker one here.
        self.upsample: Callable[[Tensor, Tensor, Tensor], Tensor] = ops.upsample_conv

    def block(self, index: int) -> ResidualBlock:
        """Residual block `index`, in [0, num_blocks)."""
        return cast(ResidualBlock, self.get_submodule(f"block{index}"))

    def forward(self, individual: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """[N, 4w, S/4, S/4], shift and scale [N, R, 2, 4w] -> images [N, C, S, S] in [-1, 1]."""
        x = individual
        for index in range(self.num_blocks):
            x = self.block(index).modulated(x, shift[:, index], scale[:, index])
        for layer, norm in ((self.up0, self.norm0), (self.up1, self.norm1)):
            x = torch.relu(norm(self.upsample(x, layer.weight, cast(Tensor, layer.bias))))
        return torch.tanh(self.out(x))


class CAEModule(nn.Module):
    """Both encoders, the modulation and the decoder: the part of the method that explains."""

    def __init__(self, config: CAEConfig) -> None:
        """Creates the networks with Kaiming-normal convolutions and zero biases."""
        super().__init__()
        self.config = config
        self.class_encoder = ClassEncoder(config)
        self.individual_encoder = IndividualEncoder(config)
        self.modulation = Modulation(config)
        self.decoder = Decoder(config)
        initialise(self)

    def encode_class(self, images: Tensor) -> Tensor:
        """Images [N, C, S, S] -> class codes [N, code_dim]."""
        return cast(Tensor, self.class_encoder(images))

    def encode_individual(self, images: Tensor) -> Tensor:
        """Images [N, C, S, S] -> individual codes [N, 4 * channels, S / 4, S / 4]."""
        return cast(Tensor, self.individual_encoder(images))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> (individual codes, class codes)."""
        return self.encode_individual(images), self.encode_class(images)

    def decode(self, individual: Tensor, class_code: Tensor) -> Tensor:
        """Individual codes and class codes of the same N -> images [N, C, S, S] in [-1, 1]."""
        shift, scale = self.modulation(class_code)
        return cast(Tensor, self.decoder(individual, shift, scale))

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction: the images decoded from their own codes."""
        individual, class_code = self.encode(images)
        return self.decode(individual, class_code)


class Discriminator(nn.Module):
    """Image -> fake/real logits and class logits; used in training only."""

    def __init__(self, config: CAEConfig, *, spectral_norm: bool = False) -> None:
        """Creates the discriminator; `spectral_norm` bounds its Lipschitz constant."""
        super().__init__()
        w = config.channels
        widths = (config.in_channels, w, 2 * w, 4 * w, 8 * w)
        convs: list[nn.Module] = [ReflectConv(widths[i], widths[i + 1], 4, 2) for i in range(4)]
        blocks: list[nn.Module] = [ReflectConv(8 * w, 8 * w, 3) for _ in range(4)]
        if spectral_norm:
            convs = [parametrizations.spectral_norm(conv) for conv in convs]
            blocks = [parametrizations.spectral_norm(conv) for conv in blocks]
        self.convs = nn.ModuleList(convs)
        self.blocks = nn.ModuleList(blocks)
        self.hidden = nn.Linear(8 * w, 4 * w)
        self.dropout = nn.Dropout(0.4)
        self.real = nn.Linear(4 * w, 2)
        self.classes = nn.Linear(4 * w, config.num_classes)
        initialise(self, slope=0.2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, C, S, S] -> fake (0) / real (1) logits [N, 2], class logits [N, K]."""
        x = images
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        for first, second in zip(self.blocks[0::2], self.blocks[1::2], strict=True):
            if min(x.shape[2:]) < 2:  # reflection needs two pixels: 16-pixel images end at one
                break
            x = x + second(F.leaky_relu(first(x), 0.2))
        hidden = self.dropout(torch.relu(self.hidden(x.mean(dim=(2, 3)))))
        return self.real(hidden), self.classes(hidden)


def initialise(module: nn.Module, *, slope: float = 0.0) -> None:
    """Kaiming-normal weights (fan in) and zero biases for every convolution and linear layer."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, a=slope, mode="fan_in")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
