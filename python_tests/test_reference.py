# SPDX-License-Identifier: Apache-2.0
"""The specification itself: hand-worked cases and identities, in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cae_fast import reference  # noqa: E402  (needs torch)
from cae_fast.networks import CAEModule, Discriminator  # noqa: E402
from cae_fast.testing import toy_model  # noqa: E402

F64 = torch.float64


def codes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=F64)


def test_lerp_is_exact_at_both_ends() -> None:
    """In float32, t = 0 and t = 1 give the codes bit for bit."""
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(1000, 8, generator=generator) for _ in range(2))
    assert torch.equal(reference.lerp_codes(start, end, torch.zeros(1000)), start)
    assert torch.equal(reference.lerp_codes(start, end, torch.ones(1000)), end)


def test_path_goes_by_arc_length() -> None:
    """An L-shaped path of lengths 3 and 1: t = 3/4 is the corner."""
    vertices = codes([0, 0], [3, 0], [3, 1])[None]
    steps = torch.arange(5)
    got = reference.path_codes(vertices, torch.zeros(5, dtype=torch.int64), steps, 4)
    assert torch.allclose(got, codes([0, 0], [1, 0], [2, 0], [3, 0], [3, 1]), atol=1e-15)
    assert torch.equal(got[-1], vertices[0, -1])


def test_path_degenerates_gracefully() -> None:
    """Repeated vertices and paths of length zero have a defined point everywhere."""
    repeated = codes([0, 0], [0, 0], [2, 0], [2, 0])[None]
    point = codes([1, 5], [1, 5], [1, 5])[None]
    steps = torch.arange(3)
    index = torch.zeros(3, dtype=torch.int64)
    got = reference.path_codes(repeated, index, steps, 2)
    assert torch.allclose(got, codes([0, 0], [1, 0], [2, 0]))
    assert torch.equal(reference.path_codes(point, index, steps, 2), point[0])
    assert torch.equal(reference.path_codes(point[:, :1], index, steps, 2), point[0])


def test_norms_by_hand() -> None:
    """Two pixels 0 and 2: mean 1, biased variance 1, unbiased deviation sqrt(2)."""
    x = codes([0, 2]).view(1, 1, 1, 2)
    instance = reference.instance_norm(x).flatten()
    assert instance.tolist() == pytest.approx([-((1 + 1e-5) ** -0.5), (1 + 1e-5) ** -0.5])
    modulated = reference.adain(x, codes([3]), codes([2])).flatten()
    assert modulated.tolist() == pytest.approx((3 + 2 * instance).tolist())
    layer = reference.layer_norm(x, codes([2])[0], codes([5])[0]).flatten()
    expected = 2 / (2**0.5 + 1e-5)
    assert layer.tolist() == pytest.approx([5 - expected, 5 + expected])


def test_upsample_conv_by_hand() -> None:
    """A kernel that picks the pixel two to the right, on an upsampled and reflected row."""
    x = torch.arange(9, dtype=F64).view(1, 1, 3, 3)
    weight = torch.zeros(1, 1, 5, 5, dtype=F64)
    weight[0, 0, 2, 4] = 1
    row = reference.upsample_conv(x, weight, codes([10])[0])[0, 0, 0]
    assert row.tolist() == [11, 11, 12, 12, 12, 11]


def test_difference_and_saliency_by_hand() -> None:
    """Channels are summed in absolute value and divided by the peak; equal images give zeros."""
    first = torch.zeros(2, 2, 1, 2, dtype=F64)
    second = first.clone()
    second[0, :, 0, 0] = torch.tensor([1.0, -1.0])
    second[0, 0, 0, 1] = 0.5
    difference, saliency = reference.difference_saliency(second, first)
    assert torch.equal(difference, second)
    assert saliency[0].tolist() == [[1.0, 0.25]]
    assert saliency[1].tolist() == [[0.0, 0.0]]


def test_network_is_made_of_the_specified_layers() -> None:
    """The decoder with its layers written out by hand gives the same image."""
    model = toy_model()
    net: CAEModule = model.module().double()
    weights = {name: torch.from_numpy(a.copy()).double() for name, a in model.weights.items()}
    generator = torch.Generator().manual_seed(1)
    individual = torch.randn(2, 16, 4, 4, generator=generator, dtype=F64)
    code = torch.randn(2, 4, generator=generator, dtype=F64)
    hidden = code
    for layer in range(3):
        hidden = hidden @ weights[f"modulation.linear{layer}.weight"].T
        hidden = hidden + weights[f"modulation.linear{layer}.bias"]
        hidden = hidden.relu() if layer < 2 else hidden
    chunks = hidden.view(2, 2, 2, 16)
    x = individual
    for conv in range(2):
        name = f"decoder.block0.conv{conv}"
        x = reference.conv2d_reflect(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1
        )
        x = reference.adain(x, chunks[:, conv, 0], chunks[:, conv, 1])
        x = x.relu() if conv == 0 else x
    x = individual + x
    for up in range(2):
        name = f"decoder.up{up}"
        x = reference.upsample_conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        norm = f"decoder.norm{up}"
        x = reference.layer_norm(x, weights[f"{norm}.gamma"], weights[f"{norm}.beta"]).relu()
    x = reference.conv2d_reflect(
        x, weights["decoder.out.weight"], weights["decoder.out.bias"], padding=3
    )
    assert torch.allclose(net.decode(individual, code), x.tanh(), atol=1e-12)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (20, 3), (52, 4)])
def test_shapes_at_awkward_sizes(size: int, channels: int) -> None:
    """Codes, images and discriminator outputs have the documented shapes."""
    config = toy_model(image_size=size, in_channels=channels, code_dim=3).config
    images = torch.randn(2, channels, size, size)
    net = CAEModule(config)
    individual, code = net.encode(images)
    assert tuple(individual.shape) == (2, *config.individual_shape)
    assert tuple(code.shape) == (2, 3)
    assert tuple(net.decode(individual, code).shape) == tuple(images.shape)
    real, classes = Discriminator(config)(images)
    assert tuple(real.shape) == (2, 2)
    assert tuple(classes.shape) == (2, 3)
