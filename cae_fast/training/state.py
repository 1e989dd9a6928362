# SPDX-License-Identifier: Apache-2.0
"""Everything that training changes, and how it is saved and restored exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from ..model import CAEConfig
from ..networks import CAEModule
from .adversaries import Adversary, ByClassAdversary, ClassHeadAdversary
from .upsampling import upsample_conv_by_place

if TYPE_CHECKING:
    from .critic import Critic
    from .options import Schedule, TrainOptions

_BETAS = (0.5, 0.999)
_COSINE_END = 0.02
# A gradient this many times as long as usual is shortened to that: with networks that have no norms
# one such step can end all ReLUs of a layer for good.
_LONGEST = 4.0
_USUAL_DECAY = 0.98
# Of the learning rate, for a class encoder that has had its own lesson: batches of few images would
# make it unlearn that.
_WARMED = 0.1


class TrainingState:
    """Networks, running mean of the generator's weights, optimisers, and steps done.

    Random numbers need no state: each step seeds its own from the run's seed and its number.
    """

    def __init__(
        self,
        config: CAEConfig,
        options: TrainOptions,
        device: torch.device,
        critic: Critic | None = None,
    ) -> None:
        """Creates networks with random weights from the global generator of torch.

        The adversary is the method's discriminator, or, where there is a critic, one that begins
        as its copy.
        """
        self.generator = CAEModule(config).to(device)
        self.generator.decoder.upsample = upsample_conv_by_place
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.adversary: Adversary
        if critic is None:
            self.adversary = ClassHeadAdversary(config, device)
        else:
            penalized = options.weights.gradient_penalty > 0
            self.adversary = ByClassAdversary(critic, device, penalized=penalized)
        self.discriminator = self.adversary.network
        self.mean = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.step = 0
        self.seconds = 0.0
        self.best = -math.inf
        self._usual: dict[str, float] = {}
        self._options = options
        warmed = list(self.generator.class_encoder.parameters()) if options.warmup_steps else []
        self._adam_g = _adam(self.generator, options, slow=warmed)
        self._adam_d = _adam(self.discriminator, options)

    def set_rate(self) -> float:
        """Sets and gives the learning rate of the step to come."""
        options = self._options
        rate = options.learning_rate * schedule_factor(options.schedule, self.step, options.steps)
        for optimiser in (self._adam_g, self._adam_d):
            # A second group is the warmed class encoder's.
            for group, share in zip(optimiser.param_groups, (1.0, _WARMED), strict=False):
                group["lr"] = rate * share
        return rate

    def update_discriminator(self, loss: Tensor) -> None:
        """One step of the discriminator."""
        self._adam_d.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.discriminator)
        self._shorten("discriminator", self.discriminator)
        self._adam_d.step()

    def update_generator(self, loss: Tensor) -> None:
        """One step of the generator, and of the running mean of its weights."""
        self._adam_g.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.generator)
        for name, part in self.generator.named_children():
            self._shorten(name, part)  # one part's alone may be long: the class encoder's is short
        self._adam_g.step()
        # A short run must not be dominated by its first, random weights.
        decay = min(self._options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(
                self.mean.parameters(), self.generator.parameters(), strict=True
            ):
                mean.lerp_(value, 1 - decay)

    def _shorten(self, name: str, network: nn.Module) -> None:
        """Shortens a gradient that is far longer than those before."""
        usual = self._usual.get(name, 0.0)
        limit = _LONGEST * usual if usual > 0 else math.inf
        length = float(nn.utils.clip_grad_norm_(network.parameters(), limit))
        if math.isfinite(length):  # else the loss is not either, which is said
            seen = min(length, limit)
            self._usual[name] = usual + (1 - _USUAL_DECAY) * (seen - usual) if usual > 0 else seen

    def finite(self) -> bool:
        """Whether all weights are finite."""
        networks = (self.generator, self.discriminator)
        return all(bool(p.isfinite().all()) for n in networks for p in n.parameters())

    def to_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "mean": self.mean.state_dict(),
            "adam_generator": self._adam_g.state_dict(),
            "adam_discriminator": self._adam_d.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "usual": dict(self._usual),
        }

    def restore(self, saved: dict[str, Any], origin: str) -> None:
        """Takes over a checkpoint.

        Raises:
            ModelFileError: The checkpoint lacks something or fits other networks.
        """
        try:
            self.generator.load_state_dict(saved["generator"])
            self.discriminator.load_state_dict(saved["discriminator"])
            self.mean.load_state_dict(saved["mean"])
            self._adam_g.load_state_dict(saved["adam_generator"])
            self._adam_d.load_state_dict(saved["adam_discriminator"])
            self.step = int(saved["step"])
            self.seconds = float(saved["seconds"])
            self.best = float(saved["best"])
            self._usual = {name: float(value) for name, value in saved["usual"].items()}
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise ModelFileError(f"{origin}: does not fit this run ({error})") from error


def schedule_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Learning rate of a step relative to that of the first.

    Args:
        schedule: "constant", "halving" (every tenth of the run) or "cosine" (after half the run).
        step: Number of the step, from 0.
        steps: Length of the run.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "halving":
        return float(0.5 ** (10 * step // steps))
    late = max(0.0, 2 * step / steps - 1)
    return _COSINE_END + (1 - _COSINE_END) * 0.5 * (1 + math.cos(math.pi * late))


def average_gradients(network: nn.Module) -> None:
    """Averages gradients over the processes, where there are several."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(
        gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def _adam(
    network: nn.Module, options: TrainOptions, slow: Sequence[nn.Parameter] = ()
) -> torch.optim.Adam:
    apart = {id(parameter) for parameter in slow}
    others = [parameter for parameter in network.parameters() if id(parameter) not in apart]
    groups = [{"params": others}] + ([{"params": list(slow)}] if slow else [])
    return torch.optim.Adam(
        groups, lr=options.learning_rate, betas=_BETAS, weight_decay=options.weight_decay
    )
