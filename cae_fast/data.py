# SPDX-License-Identifier: Apache-2.0
"""Folders of labelled images: which files there are, their classes and their groups.

Three layouts are read (`data_layout` decides between them):

* ``DIR/{train,test}/{class}/*.png`` (also ``val``; ``training``, ``testing``, ``validation`` and
  other capitals are understood);
* ``DIR/{class}/*.png``, which has no splits of its own;
* the layout of the authors' public code: folders ``trainA_img``, ``trainB_img``, ``testA_img``,
  ``testB_img`` and files ``trainAB_img-name_label.txt``, ``testAB_img-name_label.txt`` of lines
  ``name label``; without a label file, A is class 0 and B is class 1.

Classes are numbered in the order of their sorted names (the authors' labels: as numbers), over all
splits. A file ``DIR/metadata.csv`` with the columns ``file`` (relative to DIR, with ``/``) and
optionally ``group`` and ``mask`` names what belongs together, such as the images of one patient:
a group is never divided by `ImageDataset.split_validation`. An image without a group is a group
of its own. Lesion masks are found by the ``mask`` column, or as ``DIR/masks/{file}``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .data_layout import scan_folder
from .decoding import DEFAULT_MAX_PIXELS
from .images import Fit, OnError, load_images

__all__ = ["ImageDataset"]


@dataclass(init=False, repr=False, eq=False)
class ImageDataset:
    """A list of labelled image files, in a fixed order; no pixels are held.

    Attributes:
        root: Folder that `files` are relative to.
        files: Relative paths with ``/``, N of them.
        labels: Class indices [N], int64, in 0..K-1.
        class_names: K names.
        groups: Group of each file; files of one group stay together when splitting. Empty means
            that each file is a group of its own.
        masks: Relative path of each file's lesion mask, or None. Empty means no masks.
        ignored: What `from_folder` passed over, one "path: reason" each.
    """

    root: Path
    files: list[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: list[str]
    masks: list[str | None]
    ignored: tuple[str, ...]

    def __init__(
        self,
        root: str | Path,
        files: Sequence[str],
        labels: Sequence[int] | NDArray[Any],
        class_names: Sequence[str],
        groups: Sequence[str] = (),
        masks: Sequence[str | None] = (),
        ignored: Sequence[str] = (),
    ) -> None:
        """Check and keep the lists; see the class for their meaning.

        Raises:
            ValueError: Lengths disagree, a label is not in 0..K-1, or class names repeat.
        """
        self.root = Path(root)
        self.files = [str(file) for file in files]
        self.labels = np.asarray(labels, dtype=np.int64).reshape(-1)
        self.class_names = tuple(str(name) for name in class_names)
        self.groups = list(groups) if len(groups) else list(self.files)
        self.masks = list(masks) if len(masks) else [None] * len(self.files)
        self.ignored = tuple(ignored)
        for name, column in (("labels", self.labels), ("groups", groups), ("masks", masks)):
            if len(column) != len(self.files) and (name == "labels" or len(column)):
                raise ValueError(
                    f"{name} must have one entry per file ({len(self.files)}), got {len(column)}"
                )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names repeat: {', '.join(self.class_names)}")
        bad = (self.labels < 0) | (self.labels >= len(self.class_names))
        if bad.any():
            raise ValueError(
                f"labels must be in 0..{len(self.class_names) - 1}, got {self.labels[bad][0]}"
            )

    @classmethod
    def from_folder(cls, root: str | Path, split: str | None = None) -> ImageDataset:
        """List the images of a folder in one of the layouts of this module's text.

        Hidden files, files that are no images by their name, and folders that belong to no split
        are passed over and listed in `ignored`. Links are followed. Files are sorted by class,
        then name. No image is opened.

        Args:
            root: The folder DIR.
            split: "train", "test" or "val"; None takes all images. In ``DIR/{class}/*``, "train"
                is all images and the others do not exist.

        Returns:
            The data set. Its class names do not depend on `split`.

        Raises:
            ValueError: No such folder or split, fewer than two classes, a class folder that holds
                folders, or a label file or metadata.csv that does not fit; one line says what was
                seen and what is wanted.

        Warns:
            UserWarning: A class of the split has one image or none, or a group of metadata.csv
                is in more than one split.
        """
        found = scan_folder(Path(root), split)
        dataset = cls(
            found.root,
            [image.file for image in found.images],
            [image.label for image in found.images],
            found.class_names,
            [image.group for image in found.images],
            [image.mask for image in found.images],
            found.ignored,
        )
        few = [f"{name} ({count})" for name, count in dataset.class_counts().items() if count < 2]
        if few:
            warnings.warn(
                f"{root}: fewer than two images in class {', '.join(few)}"
                + (f" of split {split}" if split else ""),
                stacklevel=2,
            )
        if found.shared_groups:
            listed = ", ".join(found.shared_groups[:5])
            warnings.warn(
                f"{root}: {len(found.shared_groups)} groups of metadata.csv are in more than one "
                f"split, so that results on the test split are too good: {listed}",
                stacklevel=2,
            )
        return dataset

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.files)

    def __repr__(self) -> str:
        """Show the folder, the number of images and the classes."""
        counts = ", ".join(f"{name}: {count}" for name, count in self.class_counts().items())
        return f"ImageDataset({str(self.root)!r}, {len(self)} images; {counts})"

    @property
    def paths(self) -> list[Path]:
        """Full path of each image."""
        return [self.root / file for file in self.files]

    def mask_path(self, index: int) -> Path | None:
        """Full path of an image's lesion mask, None where there is none."""
        mask = self.masks[index]
        return None if mask is None else self.root / mask

    def class_counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `class_names`."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> ImageDataset:
        """Take some images, in the order given.

        Args:
            indices: Positions in 0..N-1, or a boolean mask [N].

        Returns:
            A data set of the same classes.

        Raises:
            ValueError: An index is out of range or not an integer, or the mask has another length.
        """
        chosen = self._indices(indices)
        return ImageDataset(
            self.root,
            [self.files[i] for i in chosen],
            self.labels[chosen],
            self.class_names,
            [self.groups[i] for i in chosen],
            [self.masks[i] for i in chosen],
            self.ignored,
        )

    def split_validation(
        self, fraction: float = 0.1, seed: int = 0
    ) -> tuple[ImageDataset, ImageDataset]:
        """Divide the images into a training and a validation part, whole groups at a time.

        Each class gets near `fraction` of its images into validation, at least one where it has
        two groups or more, and always keeps one in training. Few large groups make the part
        larger or smaller than asked for.

        Args:
            fraction: Share of the images wanted for validation, in (0, 1).
            seed: Chooses the groups; the same seed always gives the same parts.

        Returns:
            (train, validation), each in the order of this data set.

        Raises:
            ValueError: `fraction` is out of range, or no group can be spared.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction!r}")
        chosen = _choose_groups(self.groups, self.labels, len(self.class_names), fraction, seed)
        if not chosen:
            raise ValueError(
                f"no validation part can be split off: {len(self)} images in "
                f"{len(set(self.groups))} groups, and every class needs a group on either side; "
                "wanted two groups or more in some class"
            )
        held_out = np.array([group in chosen for group in self.groups], dtype=bool)
        return self.subset(~held_out), self.subset(held_out)

    @overload
    def load(
        self,
        indices: Sequence[int] | NDArray[Any] | None = ...,
        *,
        size: int | None = ...,
        channels: int | None = ...,
        max_pixels: int = ...,
        fit: Fit = ...,
        on_error: Literal["raise"] = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def load(
        self,
        indices: Sequence[int] | NDArray[Any] | None = ...,
        *,
        size: int | None = ...,
        channels: int | None = ...,
        max_pixels: int = ...,
        fit: Fit = ...,
        on_error: Literal["collect"],
    ) -> tuple[NDArray[np.float32], list[str | None]]: ...

    def load(
        self,
        indices: Sequence[int] | NDArray[Any] | None = None,
        *,
        size: int | None = None,
        channels: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        fit: Fit = "stretch",
        on_error: OnError = "raise",
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[str | None]]:
        """Read the pixels of some or all images into memory; see `cae_fast.images.load_images`.

        For sets too large for that: ``cae_fast.images.iter_batches(dataset.paths, ...)``.

        Args:
            indices: Which images, as in `subset`; None is all.
            size: Side of the square result in pixels.
            channels: Channels of the result, 1 or 3.
            max_pixels: Largest width x height of a file.
            fit: "stretch", "crop" or "pad", for images that are not square.
            on_error: "raise" stops at the first unreadable image; "collect" goes on.

        Returns:
            [M, C, H, W], float32 in [-1, 1]; with "collect" a pair of it and M reasons, None for
            a good image, text for an unreadable one, whose pixels are zeros.

        Raises:
            ImageDecodeError: A file cannot be read.
            ValueError: Wrong indices or options, no index at all, or sizes that differ and no
                `size`.
        """
        paths = self.paths
        chosen = paths if indices is None else [paths[i] for i in self._indices(indices)]
        return load_images(
            chosen,
            size=size,
            channels=channels,
            max_pixels=max_pixels,
            fit=fit,
            on_error=on_error,
        )

    def _indices(self, indices: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        chosen = np.asarray(indices)
        if chosen.size == 0 and chosen.dtype != bool:
            return np.zeros(0, dtype=np.int64)
        if chosen.dtype == bool and chosen.shape == (len(self),):
            return np.flatnonzero(chosen).astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"indices must be integers [M] or a boolean mask [{len(self)}], "
                f"got {chosen.dtype} {chosen.shape}"
            )
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            raise ValueError(f"indices must be in 0..{len(self) - 1}, got {outside[0]}")
        return chosen.astype(np.int64)


def _choose_groups(
    groups: Sequence[str],
    labels: NDArray[np.int64],
    num_classes: int,
    fraction: float,
    seed: int,
) -> set[str]:
    """Choose the groups to hold out: near `fraction` of each class, never all of one."""
    names = sorted(set(groups))
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), num_classes), dtype=np.int64)  # images of a class in a group
    np.add.at(counts, (np.array([number[group] for group in groups], np.int64), labels), 1)
    total = counts.sum(axis=0)
    wanted = fraction * total
    held = np.zeros(num_classes, dtype=np.int64)
    chosen: set[int] = set()
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(names))]

    def spares(group: int) -> bool:
        left = total - held - counts[group]
        return bool(np.all((left > 0) | (counts[group] == 0)))

    def deviation(group: int) -> float:
        return float(np.abs(held + counts[group] - wanted).sum())

    for group in order:
        if spares(group) and deviation(group) < float(np.abs(held - wanted).sum()):
            chosen.add(group)
            held += counts[group]
    for label in range(num_classes):
        candidates = [
            group
            for group in order
            if group not in chosen and counts[group, label] and spares(group)
        ]
        if held[label] == 0 and candidates:
            best = min(candidates, key=deviation)
            chosen.add(best)
            held += counts[best]
    return {names[group] for group in chosen}
