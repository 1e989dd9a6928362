# SPDX-License-Identifier: Apache-2.0
"""Training images: splits, decoded pixels, and pairs of different classes.

What a step sees is a function of (seed, step, process) alone, so that a resumed run goes on with
the same batches.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import ImageDataset
from ..errors import CAEError, ImageDecodeError
from ..images import iter_batches, load_images

_LEVELS = 32767.0  # int16 holds [-1, 1] finely enough for 16-bit images
_PROBED = 32


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images; test is None where the folder has no such split."""

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset | None


def read_splits(root: str | os.PathLike[str], fraction: float, seed: int) -> Splits:
    """Divides a folder; validation is its own split "val", or a part of train by group.

    Raises:
        CAEError: No such folder, a layout that is not understood, fewer than two classes, or a
            class with fewer than two training images.
    """
    with warnings.catch_warnings():
        # Said below as an error.
        warnings.filterwarnings("ignore", ".*fewer than two images in class", UserWarning)
        everything = ImageDataset.from_folder(str(root), split="train")
    few = [name for name, count in everything.class_counts().items() if count < 2]
    if few:
        raise CAEError(
            f"{root}: fewer than two training images of class {', '.join(few)}; "
            "training needs two of each class, one of them to measure on"
        )
    validation = _optional_split(root, "val")
    if validation is None:
        train, validation = everything.split_validation(fraction, seed)
    else:
        train = everything
    return Splits(train, validation, _optional_split(root, "test"))


def _optional_split(root: str | os.PathLike[str], split: str) -> ImageDataset | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training split has warned of shared groups
        try:
            return ImageDataset.from_folder(str(root), split=split)
        except CAEError:
            return None


def probe_channels(dataset: ImageDataset) -> int:
    """1 where all of a sample of the images are grey, else 3."""
    return 3 if any(image.shape[1] != 1 for image in _probe(dataset)) else 1


def probe_size(dataset: ImageDataset, highest: int) -> int:
    """Longest side of a sample of the images, rounded up to a multiple of 4, at most `highest`."""
    longest = max(max(image.shape[2:]) for image in _probe(dataset))
    return int(min(highest, max(16, -(-longest // 4) * 4)))


def _probe(dataset: ImageDataset) -> list[NDArray[np.float32]]:
    every = max(1, len(dataset) // _PROBED)
    return [load_images(path) for path in dataset.paths[::every]]


class ImageStore:
    """Pixels of a data set, decoded once where they fit in memory, else read when asked for."""

    def __init__(
        self, dataset: ImageDataset, size: int, channels: int, *, cache_bytes: int | None = None
    ) -> None:
        """Decodes the images if they fit.

        Args:
            dataset: The images.
            size: Side of the square result.
            channels: Channels of the result.
            cache_bytes: Largest size kept in memory; None is a quarter of what is free.

        Raises:
            ImageDecodeError: An image cannot be read; the first is named, the others counted.
        """
        self._paths = dataset.paths
        self._size = size
        self._channels = channels
        self._pixels: Tensor | None = None
        limit = available_memory() // 4 if cache_bytes is None else cache_bytes
        if 2 * len(dataset) * channels * size * size <= limit:
            shape = (len(dataset), channels, size, size)
            self._pixels = torch.empty(shape, dtype=torch.int16)
            refused: list[str] = []
            start = 0
            for images, reasons in iter_batches(
                self._paths, 64, size=size, channels=channels, on_error="collect"
            ):
                self._pixels[start : start + len(images)] = _to_levels(images)
                refused += [reason for reason in reasons if reason is not None]
                start += len(images)
            if refused:
                more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
                raise ImageDecodeError(f"{refused[0]}{more}; repair or remove it to train")

    @property
    def cached(self) -> bool:
        """Whether the decoded images are in memory."""
        return self._pixels is not None

    def __len__(self) -> int:
        """Number of images."""
        return len(self._paths)

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Images [M, C, S, S], float32 in [-1, 1], on the CPU."""
        if self._pixels is not None:
            chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64))
            return self._pixels[chosen].float() / _LEVELS
        paths = [self._paths[int(i)] for i in indices]
        loaded = load_images(paths, size=self._size, channels=self._channels)
        return _to_levels(loaded).float() / _LEVELS


@dataclass(frozen=True)
class LabelledImages:
    """Pixels and classes [N], int64, of the same images."""

    store: ImageStore
    labels: NDArray[np.int64]


def _to_levels(images: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.rint(images * _LEVELS).astype(np.int16))


def available_memory() -> int:
    """Bytes of memory that are free, as far as the system says; 4 GiB where it does not."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 4 * 1024**3


class PairSampler:
    """Image pairs of two different classes, all class pairs equally often.

    Pairs of classes come in shuffled rounds; the images of a class are drawn independently, so a
    small class is repeated more often than a large one.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        num_classes: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Prepares the lists of images per class.

        Args:
            labels: Class of each image, [N].
            num_classes: K, the number of classes that labels may name.
            batch_size: Pairs per step of one process.
            seed: Of everything drawn.
            rank: Number of this process.
            world: Number of processes.

        Raises:
            CAEError: Fewer than two classes have images.
        """
        self._members = [np.flatnonzero(labels == k) for k in range(num_classes)]
        present = [k for k in range(num_classes) if len(self._members[k])]
        if len(present) < 2:
            raise CAEError(
                f"training needs images of two classes at least, got those of {len(present)}: "
                "with labels='classifier', the classifier puts all images into one class"
            )
        self._pairs = np.array([(a, b) for a in present for b in present if a != b])
        self._batch = batch_size
        self._seed = seed
        self._rank = rank
        self._world = world

    def rng(self, step: int) -> np.random.Generator:
        """The generator of one step of this process."""
        return np.random.default_rng([self._seed, 1, step, self._rank])

    def draw(self, step: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Image indices [2 * batch_size]: first all A sides, then their B sides."""
        first = (step * self._world + self._rank) * self._batch
        pairs = np.stack([self._pair(first + i) for i in range(self._batch)])
        sides = pairs.T.reshape(-1)
        chosen: list[Any] = [rng.choice(self._members[k]) for k in sides]
        return np.asarray(chosen, dtype=np.int64)

    def _pair(self, position: int) -> NDArray[np.int64]:
        turn, place = divmod(position, len(self._pairs))
        order = np.random.default_rng([self._seed, 2, turn]).permutation(len(self._pairs))
        pair: NDArray[np.int64] = self._pairs[order[place]]
        return pair
