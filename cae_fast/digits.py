# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that scikit-learn carries, as a folder of images.

1797 grey digits of 8x8 pixels and 17 levels (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998, CC BY 4.0; scikit-learn ships the test
part). Enough to train and explain a small model anywhere, without a download.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import missing_extra
from .files import atomic_directory

TEST_FRACTION = 0.2
_HIGHEST = 16.0  # the digits' pixel values are 0..16


def load(size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Get the digits, enlarged with smooth (bicubic) interpolation.

    The last fifth of each class, in the order of the file, is the test part: neighbours in the
    file often share a writer, and so most writers are in one part only.

    Args:
        size: Side of the images in pixels, 8..512.

    Returns:
        Images [1797, size, size], uint8, white on black; digits [1797], int64; and whether an
        image belongs to the test part [1797], bool.

    Raises:
        MissingExtra: scikit-learn is not installed.
        ValueError: `size` is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 512:
        raise ValueError(f"size must be an integer in 8..512, got {size!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("digits", "scikit-learn") from error
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    images = np.empty((len(labels), size, size), dtype=np.uint8)
    for target, digit in zip(images, np.asarray(bunch.images, dtype=np.float32), strict=True):
        picture = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
        target[...] = np.rint(np.clip(np.asarray(picture) / _HIGHEST, 0.0, 1.0) * 255.0)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[members[len(members) - round(TEST_FRACTION * len(members)) :]] = True
    return images, labels, test


def write_digits(
    folder: str | os.PathLike[str], size: int = 32, *, overwrite: bool = False
) -> Path:
    """Write the digits as ``{train,test}/{0..9}/{number}.png``, grey, 8-bit.

    The folder appears whole or not at all. Its contents are the same on every call.

    Args:
        folder: Folder to make; it must not exist or be empty, unless `overwrite`.
        size: Side of the images in pixels, 8..512.
        overwrite: Replace a folder that is not empty.

    Returns:
        `folder`, ready for `cae_fast.data.ImageDataset.from_folder`.

    Raises:
        MissingExtra: scikit-learn is not installed.
        ValueError: `size` is out of range, or `folder` is a file or not empty.
    """
    images, labels, test = load(size)
    with atomic_directory(folder, overwrite=overwrite) as beside:
        for split in ("train", "test"):
            for label in range(10):
                (beside / split / str(label)).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            split = "test" if test[number] else "train"
            Image.fromarray(image).save(beside / split / str(label) / f"{number:04d}.png")
    return Path(folder)
