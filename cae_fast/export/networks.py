# SPDX-License-Identifier: Apache-2.0
"""Encoders and decoder as ONNX graphs, operation by operation as in :mod:`cae_fast.reference`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import CAE, CAEConfig
from .graph import Graph

BATCH = "batch"
_Weights = Mapping[str, npt.NDArray[Any]]
# Of the five taps that an output pixel of each phase sees, which fall onto the source pixel before,
# its own and the one after: output 2i sees the upsampled 2i-2 .. 2i+2, output 2i+1 one more.
_PHASES = (((0, 1), (2, 3), (4,)), ((0,), (1, 2), (3, 4)))


def add_encoder(graph: Graph, model: CAE) -> None:
    """Nodes of images [N, C, S, S] -> individual [N, 4w, S / 4, S / 4], class_code [N, D]."""
    config, weights = model.config, model.weights
    images = graph.to_half(graph.input("images", (BATCH, *config.image_shape)))
    individual = _individual_code(graph, images, config, weights)
    graph.output(individual, "individual", (BATCH, *config.individual_shape))
    code = _class_code(graph, images, weights)
    graph.output(code, "class_code", (BATCH, config.code_dim))


def add_decoder(graph: Graph, model: CAE, *, phases: bool = False) -> str:
    """The recombined image of each row.

    individual [N, 4w, S / 4, S / 4], class_code and exemplar_code [N, D], t [N] -> images
    [N, C, S, S] of (1 - t) class_code + t exemplar_code, which is class_code itself at t = 0.

    Args:
        graph: Gets the nodes, and the output "images".
        model: Weights.
        phases: Convolve the upsampling layers where they came from: see :func:`_upsample_phases`.

    Returns:
        The images' name, for a classifier to go on from.
    """
    config, weights = model.config, model.weights
    width = 4 * config.channels
    individual = graph.input("individual", (BATCH, *config.individual_shape))
    start = graph.input("class_code", (BATCH, config.code_dim))
    end = graph.input("exemplar_code", (BATCH, config.code_dim))
    t = graph.node("Unsqueeze", graph.input("t", (BATCH,)), graph.integers(1))
    rest = graph.node("Sub", graph.floats(1.0), t)
    code = graph.node("Add", graph.node("Mul", rest, start), graph.node("Mul", t, end))
    table = _modulation(graph, code, config, weights)
    x = graph.to_half(individual)
    for block in range(config.num_blocks):
        hidden = x
        for conv in range(2):
            shift, scale = table[4 * block + 2 * conv : 4 * block + 2 * conv + 2]
            name = f"decoder.block{block}.conv{conv}"
            normed = graph.instance_norm(
                graph.to_float(_conv(graph, hidden, weights, name, padding=1)), width
            )
            normed = graph.node("Add", graph.node("Mul", normed, scale), shift)
            hidden = graph.to_half(normed if conv else graph.node("Relu", normed))
        x = graph.node("Add", x, hidden)
    side = config.image_size // 4
    for layer in range(2):
        upsample = _upsample_phases if phases else _upsample
        up = upsample(graph, x, *_pair(weights, f"decoder.up{layer}"), side)
        side *= 2
        gamma, beta = (weights[f"decoder.norm{layer}.{kind}"] for kind in ("gamma", "beta"))
        normed = graph.layer_norm(graph.to_float(up), gamma, beta, len(gamma) * side * side)
        x = graph.to_half(graph.node("Relu", normed))
    drawn = graph.node("Tanh", graph.to_float(_conv(graph, x, weights, "decoder.out", padding=3)))
    graph.output(drawn, "images", (BATCH, *config.image_shape))
    return drawn


def _pair(weights: _Weights, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _conv(
    graph: Graph, value: str, weights: _Weights, name: str, *, padding: int, stride: int = 1
) -> str:
    return graph.conv(graph.pad(value, padding), *_pair(weights, name), stride=stride)


def _individual_code(graph: Graph, images: str, config: CAEConfig, weights: _Weights) -> str:
    x = images
    for index, (padding, stride) in enumerate(((3, 1), (1, 2), (1, 2))):
        name = f"individual_encoder.conv{index}"
        y = _conv(graph, x, weights, name, padding=padding, stride=stride)
        channels = len(weights[f"{name}.bias"])
        normed = graph.instance_norm(graph.to_float(y), channels)
        x = graph.to_half(graph.node("Relu", normed))
    for block in range(config.num_blocks):
        hidden = x
        for conv in range(2):
            name = f"individual_encoder.block{block}.conv{conv}"
            y = _conv(graph, hidden, weights, name, padding=1)
            normed = graph.instance_norm(graph.to_float(y), 4 * config.channels)
            hidden = graph.to_half(normed if conv else graph.node("Relu", normed))
        x = graph.node("Add", x, hidden)
    return graph.to_float(x)


def _class_code(graph: Graph, images: str, weights: _Weights) -> str:
    x = images
    for index in range(5):
        padding, stride = (1, 2) if index else (3, 1)
        name = f"class_encoder.conv{index}"
        x = graph.node("Relu", _conv(graph, x, weights, name, padding=padding, stride=stride))
    mean = graph.node("ReduceMean", graph.to_float(x), graph.integers(2, 3), keepdims=0)
    weight, bias = _pair(weights, "class_encoder.head")
    return graph.linear(mean, weight[:, :, 0, 0], bias)


def _modulation(graph: Graph, code: str, config: CAEConfig, weights: _Weights) -> list[str]:
    """Per residual convolution shift and scale, each [N, 4w, 1, 1]."""
    hidden = graph.node("Relu", graph.linear(code, *_pair(weights, "modulation.linear0")))
    hidden = graph.node("Relu", graph.linear(hidden, *_pair(weights, "modulation.linear1")))
    table = graph.linear(hidden, *_pair(weights, "modulation.linear2"))
    columns = graph.node("Unsqueeze", table, graph.integers(2, 3))
    count = 4 * config.num_blocks
    sizes = graph.integers(*[4 * config.channels] * count)
    return graph.nodes("Split", [columns, sizes], count, axis=1)


def _upsample(
    graph: Graph, x: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any], side: int
) -> str:
    """Nearest upsampling x2, then a 5x5 convolution with reflection padding 2."""
    return graph.conv(graph.pad(_doubled(graph, x), 2), weight, bias)


def _doubled(graph: Graph, x: str) -> str:
    return graph.node(
        "Resize",
        x,
        "",
        graph.constant((1, 1, 2, 2), np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _upsample_phases(
    graph: Graph, x: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any], side: int
) -> str:
    """The same from the source: 36 instead of 100 products per source pixel and channel pair.

    Of an upsampled row, two neighbours are equal, so that the five taps of an output pixel fall
    onto three source pixels, with weights that depend on whether its coordinate is even. Only the
    outermost rows and columns see the reflection otherwise; they are convolved as they are defined.

    Args:
        graph: Gets the nodes.
        x: [N, in, side, side].
        weight: [out, in, 5, 5].
        bias: [out].
        side: Of the source.

    Returns:
        [N, out, 2 side, 2 side].
    """
    summed = np.zeros((4, *weight.shape[:2], 3, 3), dtype=np.float64)
    for phase in range(4):
        for row, rows in enumerate(_PHASES[phase // 2]):
            for column, columns in enumerate(_PHASES[phase % 2]):
                taps = weight[:, :, rows][:, :, :, columns].astype(np.float64)
                summed[phase, :, :, row, column] = taps.sum(axis=(2, 3))
    # DepthToSpace (DCR) takes the phase from the slower part of the channel.
    merged = summed.reshape(4 * weight.shape[0], *weight.shape[1:2], 3, 3)
    four = graph.conv(graph.pad(x, 1, "edge"), merged, np.tile(bias, 4))
    inner = graph.node("DepthToSpace", four, blocksize=2, mode="DCR")
    for axis in (2, 3):
        inner = _slice(graph, inner, axis, 1, 2 * side - 1)
    whole = 2 * side

    def strip(axis: int, last: bool) -> str:
        """The outermost row (axis 2) or column (axis 3), of full length."""
        near = _slice(graph, x, axis, *((side - 2, side) if last else (0, 2)))
        near = graph.pad(_doubled(graph, near), 2)  # eight rows, of which five are seen
        near = _slice(graph, near, axis, *((3, 8) if last else (0, 5)))
        return graph.conv(near, weight, bias)

    left, right = (_slice(graph, strip(3, last), 2, 1, whole - 1) for last in (False, True))
    middle = graph.node("Concat", left, inner, right, axis=3)
    return graph.node("Concat", strip(2, False), middle, strip(2, True), axis=2)


def _slice(graph: Graph, value: str, axis: int, first: int, end: int) -> str:
    return graph.node(
        "Slice", value, graph.integers(first), graph.integers(end), graph.integers(axis)
    )
