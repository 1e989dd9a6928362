# SPDX-License-Identifier: Apache-2.0
"""Train a plain classifier to explain, for users who have none of their own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data import ImageDataset
from ..errors import CAEError
from ..files import check_parent, made_parents
from .augmentation import varied
from .classifier_export import import_onnx, write_onnx, write_pt2
from .classifier_network import ResidualClassifier
from .devices import choose_device
from .journal import console_line
from .options import ClassifierOptions
from .pipeline import (
    ImageStore,
    LabelledImages,
    probe_channels,
    probe_size,
    read_splits,
)

#: Called after each epoch with its number, the number of epochs, and what was measured.
ClassifierProgress = Callable[[int, int, dict[str, float]], None]

_LABEL_SMOOTHING = 0.05
_LARGEST_DEFAULT_SIZE = 128


@dataclass(frozen=True)
class ClassifierFiles:
    """What `train_classifier` wrote.

    Attributes:
        pt2: The torch.export file.
        onnx: The ONNX file.
        accuracy: Accuracy and balanced accuracy, per split ("validation", "test") and class.
        class_names: Names of the K outputs.
    """

    pt2: Path
    onnx: Path
    accuracy: dict[str, Any]
    class_names: tuple[str, ...]


def train_classifier(
    options: ClassifierOptions, progress: ClassifierProgress | None = None
) -> ClassifierFiles:
    """Trains a small residual network and writes it as .pt2 and .onnx.

    Classes are drawn equally often. The weights of the epoch with the best balanced accuracy on
    the validation images (ties: the lower loss) are kept. Both files are compared with the network
    before they take their names.

    Args:
        options: What to do.
        progress: Called after each epoch; None prints lines unless `options.quiet`.

    Returns:
        The files and the accuracies that were measured.

    Raises:
        ValueError: Data or options do not fit.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        OSError: The file system refused.

    Warns:
        UserWarning: The network is no better than chance on the validation images.
    """
    files = _output_files(options)
    import_onnx()
    splits = read_splits(options.data, options.validation_fraction, options.seed)
    size = options.image_size or probe_size(splits.train, _LARGEST_DEFAULT_SIZE)
    channels = options.in_channels or probe_channels(splits.train)
    device = choose_device(options.device)
    names = splits.train.class_names
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = ResidualClassifier(channels, len(names), options.width).to(device)
        train = LabelledImages(ImageStore(splits.train, size, channels), splits.train.labels)
        held = LabelledImages(
            ImageStore(splits.validation, size, channels), splits.validation.labels
        )
        fit_classifier(network, options, train, held, len(names), progress)
    network.cpu()
    accuracy: dict[str, Any] = {}
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        if part is not None and len(part):
            accuracy[name] = _measure(network, part, size, channels)
    _judge(accuracy, len(names))
    metadata = {
        "labels": list(names),
        "size": size,
        "channels": channels,
        "outputs": "logits",
        "accuracy": accuracy,
        "training": {
            "data": Path(options.data).name,
            "seed": options.seed,
            "epochs": options.epochs,
            "width": options.width,
            "augment": options.augment,
            "noise": options.noise,
            "patience": options.patience,
            "torch": torch.__version__,
        },
    }
    with made_parents(files[0]):
        write_pt2(network, files[0], metadata)
        write_onnx(network, files[1], metadata)
    return ClassifierFiles(*files, accuracy=accuracy, class_names=names)


def _output_files(options: ClassifierOptions) -> tuple[Path, Path]:
    out = Path(options.out)
    check_parent(out)
    files = (out.with_suffix(".pt2"), out.with_suffix(".onnx"))
    for file in files:
        if file.is_dir():
            raise CAEError(f"{file} is a folder, expected the name of a file to write")
        if file.exists() and not options.overwrite:
            raise CAEError(f"{file} exists; add --overwrite to replace it or choose another name")
    return files


def fit_classifier(
    network: ResidualClassifier,
    options: ClassifierOptions,
    train: LabelledImages,
    held: LabelledImages,
    num_classes: int,
    progress: ClassifierProgress | None,
) -> None:
    """Trains a network with early stopping and leaves the best weights in it, in eval mode.

    Args:
        network: On the device to train on.
        options: Rates, epochs, augmentation, noise; not its files.
        train: Training images.
        held: Held-out images.
        num_classes: K.
        progress: As in `train_classifier`.

    Raises:
        CAEError: The loss became NaN or infinite.
    """
    store, labels = train.store, train.labels
    device = next(network.parameters()).device
    steps = max(1, math.ceil(len(store) / options.batch_size))
    optimiser = torch.optim.AdamW(
        network.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=steps * options.epochs, pct_start=0.15
    )
    best = (-1.0, math.inf)
    kept = copy.deepcopy(network.state_dict())
    since = 0
    for epoch in range(options.epochs):
        rng = np.random.default_rng([options.seed, 3, epoch])
        order = balanced_order(labels, num_classes, rng)
        network.train()
        total = 0.0
        for step in range(steps):
            indices = order[step * options.batch_size : (step + 1) * options.batch_size]
            if len(indices) < 2:  # batch statistics need two images
                schedule.step()
                continue
            images = varied(store.images(indices), options.augment, rng)
            if options.noise:
                images = images + _noise(images.shape, options.noise, rng)
            images = images.to(device)
            target = torch.from_numpy(labels[indices]).to(device)
            loss = F.cross_entropy(network(images), target, label_smoothing=_LABEL_SMOOTHING)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() / steps
        if not math.isfinite(total):
            raise CAEError(
                f"the loss is {total} in epoch {epoch + 1}: lower the learning rate "
                f"({options.learning_rate:g})"
            )
        measured = _scores(_logits(network, held.store, device), held.labels)
        score = (measured["balanced_accuracy"], measured["loss"])
        since += 1
        if score[0] > best[0] or (score[0] == best[0] and score[1] < best[1]):
            best, since = score, 0
            kept = copy.deepcopy(network.state_dict())
        report = {"loss": total, **{f"validation_{k}": measured[k] for k in measured}}
        if progress is not None:
            progress(epoch + 1, options.epochs, report)
        elif not options.quiet:
            console_line("epoch", epoch + 1, options.epochs, report)
        if since >= options.patience:
            break
    network.load_state_dict(kept)
    network.eval()


def balanced_order(
    labels: NDArray[np.int64], num_classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """As many indices as there are images, all classes equally often, shuffled."""
    present = [np.flatnonzero(labels == k) for k in range(num_classes) if (labels == k).any()]
    wanted = math.ceil(len(labels) / len(present))
    drawn = []
    for members in present:
        turns = [rng.permutation(members) for _ in range(math.ceil(wanted / len(members)))]
        drawn.append(np.concatenate(turns)[:wanted])
    return rng.permutation(np.concatenate(drawn))[: len(labels)]


def _noise(shape: torch.Size, highest: float, rng: np.random.Generator) -> Tensor:
    deviation = rng.uniform(0, highest, (shape[0], 1, 1, 1))
    return torch.from_numpy((rng.standard_normal(shape) * deviation).astype(np.float32))


@torch.no_grad()
def _logits(network: ResidualClassifier, store: ImageStore, device: torch.device) -> Tensor:
    network.eval()
    parts = [
        network(store.images(range(start, min(start + 64, len(store)))).to(device)).cpu()
        for start in range(0, len(store), 64)
    ]
    return torch.cat(parts)


def _scores(logits: Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    predicted = logits.argmax(dim=1).numpy()
    recalls = [float(np.mean(predicted[labels == k] == k)) for k in np.unique(labels)]
    return {
        "loss": float(F.cross_entropy(logits, torch.from_numpy(labels))),
        "accuracy": float(np.mean(predicted == labels)),
        "balanced_accuracy": float(np.mean(recalls)),
    }


def _measure(
    network: ResidualClassifier, dataset: ImageDataset, size: int, channels: int
) -> dict[str, Any]:
    logits = _logits(network, ImageStore(dataset, size, channels), torch.device("cpu"))
    scores = _scores(logits, dataset.labels)
    predicted = logits.argmax(dim=1).numpy()
    recall = {
        name: round(float(np.mean(predicted[dataset.labels == k] == k)), 4)
        for k, name in enumerate(dataset.class_names)
        if (dataset.labels == k).any()
    }
    return {
        "images": len(dataset),
        "accuracy": round(scores["accuracy"], 4),
        "balanced_accuracy": round(scores["balanced_accuracy"], 4),
        "recall": recall,
    }


def _judge(accuracy: dict[str, Any], num_classes: int) -> None:
    """Warns of a classifier that learned nothing: within two standard errors of chance."""
    measured = accuracy["validation"]
    chance = 1 / num_classes
    error = math.sqrt(chance * (1 - chance) / measured["images"])
    if measured["balanced_accuracy"] <= chance + 2 * error:
        warnings.warn(
            f"the classifier is not clearly better than chance: balanced accuracy "
            f"{measured['balanced_accuracy']:.2f} on {measured['images']} validation images, "
            f"chance is {chance:.2f}; its explanations would mean nothing",
            stacklevel=3,
        )
