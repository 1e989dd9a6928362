# SPDX-License-Identifier: Apache-2.0
"""The critic that a run trains for itself where none is given.

The discriminator's class head moves as fast as the decoder it teaches, and on many classes the
decoder learns to ignore the class code before the head is of use. A small classifier that was
trained before, and stays as it is, keeps the method's promise in far fewer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .classifier import fit_classifier
from .classifier_export import write_pt2
from .classifier_network import ResidualClassifier
from .options import ClassifierOptions, TrainOptions
from .pipeline import LabelledImages

_IMAGES = 16_000  # seen in all, where the epochs allow
_EPOCHS = (3, 30)


def train_critic(
    path: Path,
    options: TrainOptions,
    train: LabelledImages,
    held: LabelledImages,
    class_names: Sequence[str],
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Trains a small classifier on the labels of the run and writes it.

    Args:
        path: The .pt2 file to write, atomically.
        options: Of the run: image size, augmentation, seed.
        train: Training images with the labels that the run uses.
        held: Held-out images.
        class_names: K names.
        device: Where to train.
        say: Told how well it does.
    """
    epochs = min(_EPOCHS[1], max(_EPOCHS[0], math.ceil(_IMAGES / len(train.store))))
    how = ClassifierOptions(
        data=options.data,
        out=path,
        epochs=epochs,
        patience=epochs,
        augment=options.augment,
        seed=options.seed + 1,
        quiet=True,
    )
    channels = train.store.images([0]).shape[1]
    best = [0.0]

    def follow(epoch: int, count: int, measured: dict[str, float]) -> None:
        best[0] = max(best[0], measured["validation_balanced_accuracy"])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        network = ResidualClassifier(channels, len(class_names), how.width).to(device)
        fit_classifier(network, how, train, held, len(class_names), follow)
    metadata = {
        "labels": list(class_names),
        "size": options.image_size,
        "channels": channels,
        "outputs": "logits",
        "accuracy": {"validation": {"images": len(held.store), "balanced_accuracy": best[0]}},
    }
    write_pt2(network.cpu(), path, metadata)
    say(f"trained a critic: balanced accuracy {best[0]:.2f} on {len(held.store)} held-out images")
