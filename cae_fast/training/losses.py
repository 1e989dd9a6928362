# SPDX-License-Identifier: Apache-2.0
"""The losses of class association embedding for a batch of image pairs.

One forward pass of the generator serves both updates: the discriminator's step sees the swapped
images detached, so that it builds no graph of the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..networks import CAEModule
    from .options import LossWeights

FAKE, REAL = 0, 1


@dataclass
class Swap:
    """A batch of pairs after the class codes were exchanged; N = 2 * pairs.

    Attributes:
        images: [N, C, S, S]; image i is paired with i + N / 2.
        labels: Their classes [N], int64.
        individual: Individual codes of the images.
        class_code: Class codes of the images [N, D].
        reconstruction: Decoded from own codes.
        swapped: Individual code of image i decoded with the class code of its partner.
    """

    images: Tensor
    labels: Tensor
    individual: Tensor
    class_code: Tensor
    reconstruction: Tensor
    swapped: Tensor


def partner(batch: Tensor) -> Tensor:
    """The partners of a batch: its halves exchanged."""
    return batch.roll(len(batch) // 2, dims=0)


def swap_classes(generator: CAEModule, images: Tensor, labels: Tensor) -> Swap:
    """Encodes both sides at once, then decodes own and exchanged codes at once.

    Args:
        generator: A `CAEModule`.
        images: [N, C, S, S], the A sides before the B sides.
        labels: Classes [N].
    """
    individual, class_code = generator.encode(images)
    decoded = generator.decode(
        torch.cat([individual, individual]), torch.cat([class_code, partner(class_code)])
    )
    own, swapped = decoded.float().chunk(2)
    return Swap(images, labels, individual, class_code, own, swapped)


def discriminator_losses(discriminator: nn.Module, swap: Swap) -> dict[str, Tensor]:
    """Real against swapped images, and the class of the real ones; means over the batch.

    Args:
        discriminator: Gives fake/real logits [N, 2] and class logits [N, K].
        swap: The batch; its graph is not touched.
    """
    count = len(swap.images)
    both, classes = discriminator(torch.cat([swap.images, swap.swapped.detach()]))
    truth = torch.full((2 * count,), REAL, device=swap.labels.device)
    truth[count:] = FAKE
    return {
        "discriminator_real": F.cross_entropy(both.float(), truth),
        "discriminator_class": F.cross_entropy(classes[:count].float(), swap.labels),
    }


def generator_losses(
    generator: CAEModule,
    discriminator: nn.Module,
    swap: Swap,
    weights: LossWeights,
    critic: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """All losses of the generator that have a weight.

    L1 losses are means over all values, cross entropies means over the batch; both directions of
    the exchange are in the batch.

    Args:
        generator: A `CAEModule`.
        discriminator: Its parameters must not require gradients here.
        swap: The batch, with its graph.
        weights: Losses of weight 0 are not computed.
        critic: Frozen classifier, images to logits.
    """
    donor = partner(swap.labels)
    losses: dict[str, Tensor] = {}
    if weights.reconstruction:
        losses["reconstruction"] = F.l1_loss(swap.reconstruction, swap.images)
    if weights.class_code or weights.individual_code or weights.cycle:
        individual, class_code = generator.encode(swap.swapped)
        if weights.class_code:
            losses["class_code"] = F.l1_loss(class_code.float(), partner(swap.class_code).float())
        if weights.individual_code:
            losses["individual_code"] = F.l1_loss(individual.float(), swap.individual.float())
        if weights.cycle:
            cycled = generator.decode(individual, swap.class_code).float()
            losses["cycle"] = F.l1_loss(cycled, swap.images)
    if weights.adversarial or weights.swap_class:
        both, classes = discriminator(swap.swapped)
        if weights.adversarial:
            truth = torch.full_like(swap.labels, REAL)
            losses["adversarial"] = F.cross_entropy(both.float(), truth)
        if weights.swap_class:
            losses["swap_class"] = F.cross_entropy(classes.float(), donor)
    if weights.critic and critic is not None:
        logits = critic(torch.cat([swap.swapped, swap.reconstruction]))
        losses["critic"] = F.cross_entropy(logits.float(), torch.cat([donor, swap.labels]))
    return losses


def weighted_sum(losses: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Sum of the losses times their weights."""
    return torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
