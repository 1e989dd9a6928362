# SPDX-License-Identifier: Apache-2.0
"""Training's upsampling layer against the specification, with its gradients."""

from __future__ import annotations

import pytest
import torch

from cae_fast import reference
from cae_fast.model import CAEConfig
from cae_fast.training.options import TrainOptions
from cae_fast.training.state import TrainingState
from cae_fast.training.upsampling import upsample_conv_by_place


@pytest.mark.parametrize("size", [(2, 2), (4, 7), (9, 3)])
def test_results_and_gradients_are_those_of_the_specification(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, dtype=torch.float64, generator=generator)
        return values.requires_grad_()

    x, weight, bias = drawn(3, 5, *size), drawn(6, 5, 5, 5), drawn(6)
    found, wanted = (
        function(x, weight, bias) for function in (upsample_conv_by_place, reference.upsample_conv)
    )
    assert found.shape == (3, 6, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)  # sums of 125 numbers near 1
    pull = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad(y, (x, weight, bias), pull) for y in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_weights_are_summed_before_they_are_rounded() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, 6, 6, generator=generator).bfloat16().float()
    weight = torch.randn(4, 8, 5, 5, generator=generator)
    exact = reference.upsample_conv(x.double(), weight.double(), None)

    def error(weights: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = upsample_conv_by_place(x, weights, torch.zeros(4))
        assert found.dtype == torch.bfloat16
        return float((found.double() - exact).norm() / exact.norm())

    assert error(weight) < 0.9 * error(weight.bfloat16().float())


def test_a_run_trains_with_it_and_gives_the_same_network() -> None:
    config = CAEConfig(image_size=16, channels=4, num_blocks=1, num_classes=2, in_channels=1)
    torch.manual_seed(0)
    state = TrainingState(config, TrainOptions(data="d", out="o"), torch.device("cpu"))
    assert state.generator.decoder.upsample is upsample_conv_by_place
    assert state.mean.decoder.upsample is upsample_conv_by_place
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    quick = state.generator(images)
    state.generator.decoder.upsample = reference.upsample_conv
    torch.testing.assert_close(quick, state.generator(images), rtol=0, atol=1e-5)
