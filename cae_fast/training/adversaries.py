# SPDX-License-Identifier: Apache-2.0
"""What tells swapped images from real ones: the method's discriminator, or one for each class."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import CAEConfig
from ..networks import Discriminator
from .classifier_network import ResidualClassifier
from .critic import Critic, fitted
from .losses import Swap, partner

FAKE, REAL = 0, 1


class Adversary(Protocol):
    """A network whose losses pull it and the generator apart."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    def losses(self, swap: Swap) -> dict[str, Tensor]:
        """The network's own losses, by weight; the generator's graph is not touched.

        Args:
            swap: The batch.
        """

    def generator_losses(self, swapped: Tensor, donor: Tensor) -> dict[str, Tensor]:
        """What the generator is to lower, by weight.

        Args:
            swapped: Images [N, C, S, S], with their graph.
            donor: The classes they shall show [N].
        """


class ClassHeadAdversary:
    """The discriminator of the method: fake or real, and the class of real images."""

    def __init__(self, config: CAEConfig, device: torch.device) -> None:
        """Random weights from the global generator of torch."""
        self.network = Discriminator(config).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses(self, swap: Swap) -> dict[str, Tensor]:
        """Cross entropies: real against swapped images, and the class of the real ones."""
        count = len(swap.images)
        both, classes = self.network(torch.cat([swap.images, swap.swapped.detach()]))
        truth = torch.full((2 * count,), REAL, device=swap.labels.device)
        truth[count:] = FAKE
        return {
            "discriminator_real": F.cross_entropy(both.float(), truth),
            "discriminator_class": F.cross_entropy(classes[:count].float(), swap.labels),
        }

    def generator_losses(self, swapped: Tensor, donor: Tensor) -> dict[str, Tensor]:
        """Cross entropies: taken for real, and for the donor's class."""
        both, classes = self.network(swapped)
        truth = torch.full_like(donor, REAL)
        return {
            "adversarial": F.cross_entropy(both.float(), truth),
            "swap_class": F.cross_entropy(classes.float(), donor),
        }


class ByClassAdversary:
    """Real images of a class against swapped ones that shall show it: a logit for each class.

    It begins as the critic, which knows what the classes differ in, with norms that keep their
    statistics, and learns on: no pattern pleases it for long. One logit for each class: Choi et
    al., "StarGAN v2", CVPR 2020; the penalty on gradients at real images (R1): Mescheder, Geiger,
    Nowozin, ICML 2018.
    """

    def __init__(self, critic: Critic, device: torch.device, *, penalized: bool = True) -> None:
        """Copies the critic's network; not penalized: gradients are not looked at."""
        self.network: ResidualClassifier = copy.deepcopy(critic.network).to(device)
        self.network.requires_grad_(True)
        nn.init.zeros_(self.network.head.bias)
        self._size = critic.size
        self._penalized = penalized

    def losses(self, swap: Swap) -> dict[str, Tensor]:
        """Logistic loss of both kinds, and the squared gradient at the real images."""
        images = swap.images
        if self._penalized:
            images = images.detach().clone().requires_grad_(True)
        real = self._logits(images, swap.labels)
        fake = self._logits(swap.swapped.detach(), partner(swap.labels))
        losses = {"discriminator_real": F.softplus(-real).mean() + F.softplus(fake).mean()}
        if self._penalized:
            (slope,) = torch.autograd.grad(real.sum(), images, create_graph=True)
            losses["gradient_penalty"] = slope.float().square().sum(dim=(1, 2, 3)).mean()
        return losses

    def generator_losses(self, swapped: Tensor, donor: Tensor) -> dict[str, Tensor]:
        """Logistic loss of being taken for a real image of the donor's class."""
        return {"adversarial": F.softplus(-self._logits(swapped, donor)).mean()}

    def _logits(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.network(fitted(images, self._size)).float()
        chosen: Tensor = logits.gather(1, labels[:, None])[:, 0]
        return chosen
