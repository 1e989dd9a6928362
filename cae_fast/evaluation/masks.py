# SPDX-License-Identifier: Apache-2.0
"""Lesion masks of a data set, at the size of a model's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import resize_weights
from ..data import ImageDataset
from ..decoding import decode_image
from ..errors import CAEError


def load_masks(
    dataset: ImageDataset, size: int, folder: Path | None = None
) -> list[npt.NDArray[np.bool_] | None]:
    """Masks [size, size] of the images that have one.

    A pixel belongs to the mask where at least half of it did in the file; a mask too small for that
    keeps the pixels that hold most of it.

    Args:
        dataset: The images; their own masks are used without `folder`.
        size: Side of the result.
        folder: Masks at the path of their image below this folder, any suffix of an image.

    Returns:
        One entry an image, None without a mask.

    Raises:
        CAEError: A mask has another size than its image, is empty, full or not of two values, or
            `folder` has none of the images' masks.
        ImageDecodeError: A mask cannot be read.
    """
    if folder is not None and not folder.is_dir():
        raise CAEError(f"--masks {folder}: no such folder")
    found: list[npt.NDArray[np.bool_] | None] = []
    for i, file in enumerate(dataset.files):
        path = dataset.mask_path(i) if folder is None else _beside(folder, file)
        found.append(None if path is None else _load(path, dataset.paths[i], size))
    if folder is not None and not any(mask is not None for mask in found):
        raise CAEError(
            f"--masks {folder}: has none of the images' masks; wanted, for example, "
            f"{folder / dataset.files[0]}"
        )
    return found


def _beside(folder: Path, file: str) -> Path | None:
    exact = folder / file
    if exact.is_file():
        return exact
    return next(iter(sorted(exact.parent.glob(f"{_escaped(exact.stem)}.*"))), None)


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _load(path: Path, image: Path, size: int) -> npt.NDArray[np.bool_]:
    picture, original = decode_image(path), decode_image(image)
    if picture.size != original.size:
        raise CAEError(
            f"{path}: the mask is {picture.width}x{picture.height} pixels, its image "
            f"{original.width}x{original.height}; wanted the same size"
        )
    values = np.asarray(picture.convert("L") if picture.mode != "1" else picture).astype(float)
    levels = np.unique(values)
    if len(levels) > 2:
        raise CAEError(f"{path}: the mask has {len(levels)} grey levels, wanted two")
    inside = values > 0
    if not inside.any() or inside.all():
        what = "empty" if not inside.any() else "the whole image"
        raise CAEError(f"{path}: the mask is {what}; wanted a part of the image")
    rows = resize_weights(values.shape[0], size)
    columns = resize_weights(values.shape[1], size)
    share = rows @ inside.astype(np.float32) @ columns.T
    mask: npt.NDArray[np.bool_] = share >= 0.5
    if not mask.any():
        mask = share >= share.max() * 0.999
    return mask
