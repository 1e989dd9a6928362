# SPDX-License-Identifier: Apache-2.0
"""The losses of class association embedding for a batch of image pairs.

One forward pass of the generator serves both updates: the discriminator's step sees the swapped
images detached, so that it builds no graph of the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ..networks import CAEModule
    from .adversaries import Adversary
    from .critic import Critic
    from .options import LossWeights

_SMALLEST_FOURTH = 1e-12  # the root's slope is infinite at 0
_CODE_SCALE = 4.0  # codes of a length of about 1 speak clearly


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


def generator_losses(
    generator: CAEModule,
    adversary: Adversary,
    swap: Swap,
    weights: LossWeights,
    critic: Critic | None = None,
) -> dict[str, Tensor]:
    """All losses of the generator that have a weight.

    L1 losses are means over all values, cross entropies means over the batch; both directions of
    the exchange are in the batch.

    Args:
        generator: A `CAEModule`.
        adversary: Its parameters must not require gradients here.
        swap: The batch, with its graph.
        weights: Losses of weight 0 are not computed.
        critic: None: the losses that need one are left out, and `proximity` and `peak` with them.
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
    if weights.code_class:
        logits = code_logits(swap.class_code, generator.config.num_classes)
        losses["code_class"] = F.cross_entropy(logits, swap.labels)
    if weights.adversarial or weights.swap_class:
        found = adversary.generator_losses(swap.swapped, donor)
        losses |= {name: found[name] for name in found if getattr(weights, name)}
    return losses | ({} if critic is None else _critic_losses(swap, donor, weights, critic))


def _critic_losses(
    swap: Swap, donor: Tensor, weights: LossWeights, critic: Critic
) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    if weights.critic:
        logits = critic.judge(torch.cat([swap.swapped, swap.reconstruction]))
        losses["critic"] = F.cross_entropy(logits.float(), torch.cat([donor, swap.labels]))
    if weights.critic_features:
        losses["critic_features"] = critic.feature_distance(swap.reconstruction, swap.images)
    if weights.peak:
        fourth = (swap.reconstruction - swap.images).pow(4).mean(dim=(1, 2, 3))
        losses["peak"] = (fourth + _SMALLEST_FOURTH).pow(0.25).mean()
    if weights.proximity:
        losses["proximity"] = F.l1_loss(swap.swapped, swap.reconstruction.detach())
    return losses


def code_logits(codes: Tensor, num_classes: int) -> Tensor:
    """Class logits of class codes by a head that is never trained: there is nothing to keep.

    What a decoder does not use, no loss on images teaches the encoder to say, and what codes do not
    say, no decoder learns to use. This ends the circle. That a head may be fixed as long as its
    directions differ: Hoffer, Hubara, Soudry, "Fix your classifier", ICLR 2018.

    Args:
        codes: [N, D].
        num_classes: K; directions are orthogonal where K <= D.

    Returns:
        [N, K], float32.
    """
    dim = codes.shape[1]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(max(dim, num_classes), dim, generator=generator)
    if num_classes <= dim:
        directions = torch.linalg.qr(directions[:dim]).Q
    directions = F.normalize(directions[:num_classes], dim=1).to(codes.device)
    return _CODE_SCALE * codes.float() @ directions.T


def weighted_sum(losses: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Sum of the losses times their weights."""
    return torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
