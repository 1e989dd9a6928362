# SPDX-License-Identifier: Apache-2.0
"""The class encoder's own lesson before the run: learning to see a small thing.

The encoder has no norms, and as a plain classifier it learns a class that is a small local thing by
heart, or not at all. With a batch norm after each convolution it learns it; and a batch norm folds
exactly into the convolution before it, so that the networks of the method stay what they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CAEError
from ..networks import ClassEncoder, ReflectConv
from .augmentation import varied
from .checkpoint import load_checkpoint, save_checkpoint
from .classifier import balanced_order
from .losses import code_logits
from .options import TrainOptions
from .pipeline import LabelledImages
from .promises import doubt_of

_BATCH = 32
_RATE = 2e-3
_LABEL_SMOOTHING = 0.05
_TURNS = 3
_ENOUGH = 0.97  # the class encoder hardly gains afterwards, and codes know what it knows
_WORTH_ANOTHER = 0.01


class NormedEncoder(nn.Module):
    """A class encoder with a batch norm after each convolution but the last."""

    def __init__(self, encoder: ClassEncoder) -> None:
        """Shares the weights of `encoder`."""
        super().__init__()
        self.encoder = encoder
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.out_channels) for conv in _convs(encoder))

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, S, S] -> class codes [N, code_dim]."""
        x = images
        for conv, norm in zip(_convs(self.encoder), self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return cast(Tensor, self.encoder.head(x.mean(dim=(2, 3), keepdim=True)).flatten(1))

    @torch.no_grad()
    def fold(self) -> ClassEncoder:
        """Puts the norms, as they are in eval mode, into the convolutions; gives the encoder."""
        for conv, part in zip(_convs(self.encoder), self.norms, strict=True):
            norm = cast(nn.BatchNorm2d, part)
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            scale = norm.weight / torch.sqrt(variance + norm.eps)
            conv.weight.mul_(scale[:, None, None, None])
            bias = cast(Tensor, conv.bias)
            bias.copy_((bias - mean) * scale + norm.bias)
            norm.reset_parameters()
        return self.encoder


def train_class_encoder(
    path: Path,
    encoder: ClassEncoder,
    options: TrainOptions,
    train: LabelledImages,
    held: LabelledImages,
    num_classes: int,
    say: Callable[[str], None],
) -> None:
    """Trains a class encoder by the class loss on its codes, and writes its weights.

    Where its balanced accuracy on the held-out images then is below 97 %, it goes on for as many
    steps again, twice at most, as long as that helps: the smaller a feature, the later it is found.

    Args:
        path: File to write, atomically.
        encoder: Starting weights; changed.
        options: Of the run: steps, augmentation, seed.
        train: Training images with the labels that the run uses.
        held: Held-out images, to say how well it does.
        num_classes: K.
        say: Told how well it does.

    Raises:
        CAEError: The loss became NaN or infinite.
    """
    device = next(encoder.parameters()).device
    network = NormedEncoder(encoder).to(device)
    rng = np.random.default_rng([options.seed, 7])
    best, kept = -1.0, copy.deepcopy(network.state_dict())
    for turn in range(_TURNS):
        try:
            _one_cycle(network, options, train, num_classes, rng, turn)
        except CAEError:
            if turn == 0:
                raise
            break  # there are good weights
        share = _share(network, held, num_classes, device)
        gained = share - best
        if gained > 0:
            best, kept = share, copy.deepcopy(network.state_dict())
        if share >= _ENOUGH or gained < _WORTH_ANOTHER:
            break
    network.load_state_dict(kept)
    network.eval()
    network.fold()
    save_checkpoint(path, {"class_encoder": encoder.state_dict()})
    steps = (turn + 1) * options.warmup_steps
    say(
        f"warmed up the class encoder in {steps} steps: balanced accuracy {best:.2f} on "
        f"{len(held.store)} held-out images{doubt_of(best, num_classes)}"
    )


def _one_cycle(
    network: NormedEncoder,
    options: TrainOptions,
    train: LabelledImages,
    num_classes: int,
    rng: np.random.Generator,
    turn: int,
) -> None:
    """`options.warmup_steps` steps under one cycle of the learning rate.

    Raises:
        CAEError: The loss became NaN or infinite.
    """
    device = next(network.parameters()).device
    network.train()
    steps = options.warmup_steps
    optimiser = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=max(2, steps))
    order = np.zeros(0, dtype=np.int64)
    for step in range(steps):
        if len(order) < _BATCH:
            order = np.concatenate([order, balanced_order(train.labels, num_classes, rng)])
        indices, order = order[:_BATCH], order[_BATCH:]
        if len(indices) < 2:  # batch statistics need two images
            continue
        images = varied(train.store.images(indices), options.augment, rng).to(device)
        target = torch.from_numpy(train.labels[indices]).to(device)
        logits = code_logits(network(images), num_classes)
        loss = F.cross_entropy(logits, target, label_smoothing=_LABEL_SMOOTHING)
        if not math.isfinite(loss.item()):
            raise CAEError(f"warm-up step {turn * steps + step + 1}: the loss is {loss.item()}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def restore_class_encoder(path: Path, encoder: ClassEncoder) -> None:
    """Takes over the weights that `train_class_encoder` wrote.

    Raises:
        ModelFileError: The file is missing, damaged or no checkpoint.
        CAEError: It fits another network.
    """
    try:
        encoder.load_state_dict(load_checkpoint(path)["class_encoder"])
    except (KeyError, RuntimeError) as error:
        raise CAEError(f"{path}: does not fit this run ({error})") from error


def _convs(encoder: ClassEncoder) -> list[ReflectConv]:
    return [encoder.conv0, encoder.conv1, encoder.conv2, encoder.conv3, encoder.conv4]


@torch.no_grad()
def _share(
    network: NormedEncoder, held: LabelledImages, num_classes: int, device: torch.device
) -> float:
    """Balanced accuracy on held-out images, of which there is at least one."""
    network.eval()
    shown = []
    for start in range(0, len(held.store), 64):
        rows = np.arange(start, min(start + 64, len(held.store)))
        codes = network(held.store.images(rows).to(device))
        shown.append(code_logits(codes, num_classes).argmax(dim=1).cpu().numpy())
    right = np.concatenate(shown) == held.labels
    return float(np.mean([right[held.labels == k].mean() for k in np.unique(held.labels)]))
