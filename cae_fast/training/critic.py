# SPDX-License-Identifier: Apache-2.0
"""The critic: a small frozen classifier that judges decoded images, and its own training.

The discriminator's class head moves as fast as the decoder it teaches, and on many classes the
decoder learns to ignore the class code before the head is of use. A small classifier that was
trained before, and stays as it is, keeps the method's promise in far fewer steps. One that sees
every image with noise, and moved by a pixel, is not pleased by the fine patterns that a decoder
would otherwise learn to paint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..class_names import agree
from ..classifier_files import METADATA_FILE, parse_metadata
from ..errors import ClassifierError
from ..pt2_files import check_archive
from .classifier import fit_classifier
from .classifier_export import write_pt2
from .classifier_network import ResidualClassifier
from .options import ClassifierOptions, TrainOptions
from .pipeline import LabelledImages
from .promises import doubt_of

# Images seen, epochs at most, and the largest standard deviation of the noise added to the images
# of a run's first critic. The second is for classes that a small thing tells: much noise hides it
# for long.
_LESSONS = ((16_000, 30, 0.3), (48_000, 90, 0.15))
_ENOUGH = 0.9  # balanced accuracy, with which there is no second
_FEWEST_EPOCHS = 3
_NOISE = (0.1, 0.05, 0.025)  # standard deviations of what is added to an image that is judged
_LOST = 0.05  # of its accuracy, that noise may cost a critic
_BATCH = 64
_SHIFT = 1  # pixels either way
_SMALLEST = 1e-3  # of a mean feature


class Critic:
    """A frozen classifier from images [N, C, S, S] to logits [N, K], differentiable.

    Attributes:
        network: In eval mode; its parameters need no gradients.
        size: Side of the images it was trained on; others are resized (bilinear).
        noise: Standard deviation of the noise in which it judges.
    """

    def __init__(self, network: ResidualClassifier, size: int) -> None:
        """Freezes a network."""
        self.network = network.eval().requires_grad_(False)
        self.size = size
        self.noise = _NOISE[0]

    @torch.no_grad()
    def choose_noise(self, images: Tensor, labels: Tensor) -> None:
        """Judges in the most noise that costs it no more than 5 points of its accuracy.

        A critic that was not trained in noise may see one class only there, and would guide nobody.

        Args:
            images: [N, C, S, S], of known classes.
            labels: The classes [N], int64.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(images.shape, generator=generator).to(images)

        def share(deviation: float) -> float:
            parts = torch.split(images + deviation * noise, _BATCH)
            shown = torch.cat([self(part).argmax(dim=1) for part in parts])
            return float((shown == labels).float().mean())

        wanted = share(0.0) - _LOST
        self.noise = next((d for d in _NOISE if share(d) >= wanted), 0.0)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [N, K]."""
        logits: Tensor = self.network(fitted(images, self.size))
        return logits

    def judge(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images with noise, all moved alike by at most a pixel.

        Draws from the global generator of torch.
        """
        reach = _SHIFT
        padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
        down, right = (int(n) for n in torch.randint(0, 2 * reach + 1, (2,)))
        side = images.shape[2]
        moved = padded[:, :, down : down + side, right : right + side]
        return self(moved + self.noise * torch.randn_like(moved))

    def feature_distance(self, images: Tensor, wanted: Tensor) -> Tensor:
        """How far images look from others to the critic's inner layers.

        Mean over all stages but the first of the L1 distance, relative to the mean absolute value
        for the wanted images (a perceptual loss: Johnson, Alahi, Fei-Fei, ECCV 2016). Small things
        that matter to the class weigh more than in pixels.

        Args:
            images: [N, C, S, S]; gradients flow to these.
            wanted: The same shape.
        """
        with torch.no_grad():
            goals = self.network.stages(fitted(wanted, self.size))[1:]
        found = self.network.stages(fitted(images, self.size))[1:]
        parts = [
            F.l1_loss(a.float(), b.float()) / b.float().abs().mean().clamp_min(_SMALLEST)
            for a, b in zip(found, goals, strict=True)
        ]
        return torch.stack(parts).mean()


def fitted(images: Tensor, size: int) -> Tensor:
    """Images at another size, where they have another (bilinear, differentiable)."""
    if images.shape[2] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def load_critic(
    path: str | os.PathLike[str], class_names: Sequence[str], channels: int, device: torch.device
) -> Critic:
    """A critic from a .pt2 file of `train_classifier`.

    Raises:
        ClassifierError: Not such a file, or other classes or channels.
    """
    file = Path(path)
    if file.suffix.lower() != ".pt2" or not file.is_file():
        raise ClassifierError(f"critic must be an existing .pt2 file or 'none', got {file}")
    check_archive(file, torch)
    extra = {METADATA_FILE: ""}
    try:
        weights = torch.export.load(file, extra_files=extra).state_dict
    except Exception as error:  # torch raises many kinds
        reason = str(error).partition("\n")[0]
        raise ClassifierError(f"{file}: torch.export cannot load it ({reason})") from error
    said = parse_metadata(file, extra[METADATA_FILE])
    if not {"labels", "size", "channels"} <= set(said):
        raise ClassifierError(f"{file}: not written by train-classifier, which a critic must be")
    agree({"data": class_names, "critic": said["labels"]}, error=ClassifierError)
    if said["channels"] != channels:
        raise ClassifierError(
            f"{file}: the critic takes {said['channels']} channels, the model has {channels}"
        )
    try:
        network = ResidualClassifier(channels, len(class_names), len(weights["stem.weight"]))
        # Exported without the counters of its norms, which eval mode does not read.
        absent = network.load_state_dict(weights, strict=False)
        unfit = [n for n in absent.missing_keys if not n.endswith("num_batches_tracked")]
        if unfit or absent.unexpected_keys:
            raise KeyError(", ".join([*unfit, *absent.unexpected_keys][:3]))
    except (KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ClassifierError(f"{file}: not a network of train-classifier ({reason})") from error
    return Critic(network.to(device), int(said["size"]))


def train_critic(
    path: Path,
    options: TrainOptions,
    train: LabelledImages,
    held: LabelledImages,
    class_names: Sequence[str],
    device: torch.device,
    say: Callable[[str], None],
    *,
    number: int = 0,
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
        number: Which of the run's; all but the first, 0, see no noise in training.
    """
    channels = train.store.images([0]).shape[1]
    best, kept = -1.0, None
    for images, most, noise in _LESSONS:
        epochs = min(most, max(_FEWEST_EPOCHS, math.ceil(images / len(train.store))))
        how = ClassifierOptions(
            data=options.data,
            out=path,
            epochs=epochs,
            patience=epochs,
            augment=options.augment,
            noise=0.0 if number else noise,
            seed=options.seed + 1 + number,
            quiet=True,
        )
        network, reached = _taught(how, train, held, channels, len(class_names), device)
        if reached > best:
            best, kept = reached, network
        if best >= _ENOUGH:
            break
    assert kept is not None
    metadata = {
        "labels": list(class_names),
        "size": options.image_size,
        "channels": channels,
        "outputs": "logits",
        "accuracy": {"validation": {"images": len(held.store), "balanced_accuracy": best}},
    }
    write_pt2(kept.cpu(), path, metadata)
    say(
        f"trained a critic{' without noise' if number else ''}: balanced accuracy {best:.2f} on "
        f"{len(held.store)} held-out images"
        f"{doubt_of(best, len(class_names))}"
    )


def _taught(
    how: ClassifierOptions,
    train: LabelledImages,
    held: LabelledImages,
    channels: int,
    num_classes: int,
    device: torch.device,
) -> tuple[ResidualClassifier, float]:
    """A trained network and its best balanced accuracy."""
    best = [0.0]

    def follow(epoch: int, count: int, measured: dict[str, float]) -> None:
        best[0] = max(best[0], measured["validation_balanced_accuracy"])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        network = ResidualClassifier(channels, num_classes, how.width).to(device)
        fit_classifier(network, how, train, held, num_classes, follow)
    return network, best[0]
