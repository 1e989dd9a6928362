# SPDX-License-Identifier: Apache-2.0
"""Real images with a planted feature that decides the class, and its exact mask.

What a classifier of such a set must look at is known, so a true map must show it. The image under
the feature is real, and its own class has nothing to do with where features are planted.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data import ImageDataset
from ..errors import CAEError
from ..files import atomic_directory, check_output_directory

Kind = Literal["blob", "texture", "decoy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = ("clear", "lesion")
#: A file of each planted set that says how it was made.
RECORD = "planted.json"
_TEST_FRACTION = 0.2
_TRIES = 60
_DARK_ENOUGH = 0.6  # mean grey below the feature, so that what is added can be seen
_PLATEAU = 0.6  # share of the radius before the edge falls off
_STRIPE_PIXELS = 3.0  # wavelength of the texture

_VISIBLE = 1 / 255  # one level of an 8-bit image

Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ellipse:
    """A place for a feature.

    Attributes:
        row: Centre, in pixels.
        column: Centre, in pixels.
        radius: Geometric mean of the half axes, in pixels.
        stretch: Ratio of the half axes' square root, 1 for a disc.
        angle: Of the first axis, in radians.
    """

    row: float
    column: float
    radius: float
    stretch: float
    angle: float

    def distance(self, side: int) -> Pixels:
        """Distance of each pixel from the centre, 1 on the rim, [side, side]."""
        rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
        y, x = rows - self.row, columns - self.column
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along = (x * cos + y * sin) / (self.radius * self.stretch)
        across = (y * cos - x * sin) / (self.radius / self.stretch)
        distance: Pixels = np.hypot(along, across).astype(np.float32)
        return distance


@dataclass(frozen=True)
class Planted:
    """One image with what was planted.

    Attributes:
        pixels: uint8 [H, W] or [H, W, 3].
        mask: Pixels of the feature that decides the class, [H, W]; no pixel outside was touched.
        decoy: The same for the feature that decides nothing, [H, W].
    """

    pixels: npt.NDArray[np.uint8]
    mask: Mask
    decoy: Mask


def plant(
    image: npt.ArrayLike,
    kind: Kind,
    *,
    lesion: bool,
    decoy: bool = False,
    rng: np.random.Generator,
) -> Planted:
    """Plants features into one image.

    A blob is a bright, soft-edged ellipse; a texture is a patch of fine stripes that leaves the
    mean brightness; with a decoy, a full disc decides and a ring of the same size and contrast does
    not.

    Args:
        image: [C, S, S], float in [-1, 1], C 1 or 3.
        kind: "blob", "texture" or "decoy".
        lesion: Whether the feature that decides is planted.
        decoy: Whether the other is; for kind "decoy" only.
        rng: Chooses place, size and contrast.

    Returns:
        The image with its masks, both empty where nothing was planted.

    Raises:
        ValueError: Wrong kind, shape, or a decoy for another kind.
    """
    pixels = (np.asarray(image, dtype=np.float32) + 1) / 2
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"image must be [1 or 3, S, S], got {list(pixels.shape)}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    if decoy and kind != "decoy":
        raise ValueError(f"a decoy is planted with kind='decoy' only, got {kind!r}")
    side = pixels.shape[1]
    grey = pixels.mean(axis=0)
    taken = np.zeros((side, side), dtype=bool)
    masks = []
    for wanted, shape in ((lesion, kind), (decoy, "ring")):
        # Both features are always drawn, so that having one says nothing about the other's place.
        place = _choose_place(grey, taken, kind, rng)
        contrast = float(rng.uniform(0.25, 0.5))
        turn = float(rng.uniform(0, np.pi))
        if not wanted:
            masks.append(np.zeros((side, side), dtype=bool))
            continue
        added, strength = _feature(place, side, shape, contrast, turn)
        pixels = pixels + np.where(strength >= _VISIBLE, added, 0)
        masks.append(strength >= _VISIBLE)
        taken |= place.distance(side) < 1.3
    quantised = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    out = quantised[0] if len(quantised) == 1 else np.moveaxis(quantised, 0, -1)
    return Planted(np.ascontiguousarray(out), masks[0], masks[1])


def _choose_place(grey: Pixels, taken: Mask, kind: Kind, rng: np.random.Generator) -> Ellipse:
    """A random place inside the image, off what is taken, dark enough where there is such."""
    side = len(grey)
    low, high = {"blob": (0.06, 0.12), "texture": (0.10, 0.16), "decoy": (0.09, 0.14)}[kind]
    best: tuple[float, Ellipse] | None = None
    for _ in range(_TRIES):
        radius = float(rng.uniform(low, high)) * side
        stretch = float(rng.uniform(0.85, 1.2)) if kind != "decoy" else 1.0
        margin = 1.25 * radius
        place = Ellipse(
            float(rng.uniform(margin, side - 1 - margin)),
            float(rng.uniform(margin, side - 1 - margin)),
            radius,
            stretch,
            float(rng.uniform(0, np.pi)),
        )
        inside = place.distance(side) < 1
        bright = float(grey[inside].mean())
        covered = float((place.distance(side)[taken] < 1.3).sum()) / max(int(inside.sum()), 1)
        if covered == 0 and bright <= _DARK_ENOUGH:
            return place
        badness = 10 * covered + bright
        if best is None or badness < best[0]:
            best = (badness, place)
    assert best is not None
    return best[1]


def _feature(
    place: Ellipse, side: int, shape: str, contrast: float, turn: float
) -> tuple[Pixels, Pixels]:
    """What is added to each channel, and the most that it could be there, both [side, side]."""
    distance = place.distance(side)
    if shape == "ring":
        # A rim of the width of a third of the radius, empty inside.
        rim = np.abs(distance - 0.78) / 0.22
        added = np.float32(contrast) * np.clip(1.2 * (1 - rim), 0, 1).astype(np.float32)
        return added, added
    fall = np.clip((1 - distance) / (1 - _PLATEAU), 0, 1)
    profile = (0.5 - 0.5 * np.cos(np.pi * fall)).astype(np.float32)
    if shape != "texture":
        return np.float32(contrast) * profile, np.float32(contrast) * profile
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    phase = (columns * np.cos(turn) + rows * np.sin(turn)) * (2 * np.pi / _STRIPE_PIXELS)
    waves = np.sin(phase).astype(np.float32) * profile
    total = float(profile.sum())
    waves -= profile * (float(waves.sum()) / max(total, 1e-6))  # the mean stays
    amplitude = np.float32(0.6 * contrast)
    return amplitude * waves, amplitude * profile


def write_planted(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    kind: Kind = "blob",
    size: int = 64,
    channels: int = 1,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a data set ``{train,test}/{clear,lesion}/*.png`` with ``masks/`` and metadata.csv.

    Half the images of each split and each class of the source get the feature, at random; the other
    half are as they were. With kind "decoy", half of either class get the decoy too, whose masks
    are in ``decoys/``. The same arguments give the same bytes.

    Args:
        folder: Folder to make; it appears whole or not at all.
        source: Folder of images in any layout that `ImageDataset` reads, or "digits". A source
            without a test split gives a fifth of its groups to it.
        kind: "blob", "texture" or "decoy".
        size: Side of the images in pixels, at least 24.
        channels: 1 or 3.
        seed: Chooses images, places, sizes and contrasts.
        limit: At most this many images of each split, at least 4; None is all.
        overwrite: Replace a folder that is not empty.

    Returns:
        `folder`, ready for `train`, `train-classifier` and `evaluate`.

    Raises:
        ValueError: An argument is out of range, or the source has no such images.
        ImageDecodeError: An image cannot be read.
        MissingExtra: scikit-learn is not installed (source "digits").
    """
    if kind not in KINDS:
        raise CAEError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    if isinstance(size, bool) or not isinstance(size, int) or not 24 <= size <= 1024:
        raise CAEError(f"size must be an integer in 24..1024, got {size!r}")
    if channels not in (1, 3):
        raise CAEError(f"channels must be 1 or 3, got {channels!r}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 4):
        raise CAEError(f"limit must be an integer of at least 4, got {limit!r}")
    check_output_directory(Path(folder), overwrite=overwrite)
    rows: list[dict[str, str]] = []
    with atomic_directory(folder, overwrite=overwrite) as beside:
        for split, part in _splits(source, size, seed, channels).items():
            chosen = _balanced(part.labels, limit, np.random.default_rng([seed, 1, len(split)]))
            images = part.load([i for i, _, _ in chosen])
            for image, (i, lesion, decoy) in zip(images, chosen, strict=True):
                file = part.files[i]
                rng = np.random.default_rng([seed, zlib.crc32(file.encode("utf-8"))])
                planted = plant(
                    image, kind, lesion=lesion, decoy=decoy and kind == "decoy", rng=rng
                )
                name = f"{split}/{CLASSES[int(lesion)]}/{_stem(file)}.png"
                _save(beside / name, planted.pixels)
                mask = f"masks/{name}" if lesion else ""
                if lesion:
                    _save(beside / mask, planted.mask)
                if planted.decoy.any():
                    _save(beside / "decoys" / name, planted.decoy)
                note = "decoy" if planted.decoy.any() else ""
                rows.append(
                    {
                        "file": name,
                        "split": split,
                        "label": CLASSES[int(lesion)],
                        "group": part.groups[i],
                        "note": note,
                        "mask": mask,
                        "source": file,
                    }
                )
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        (beside / "metadata.csv").write_text(text.getvalue(), encoding="utf-8")
        record = {
            "kind": kind,
            "size": size,
            "channels": channels,
            "seed": seed,
            "limit": limit,
            "source": Path(source).name,
        }
        (beside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Path(folder)


@dataclass(frozen=True)
class _Part:
    """Images of one split: their files, groups, source labels, and [M, C, S, S] of some."""

    load: Callable[[list[int]], Pixels]
    files: list[str]
    groups: list[str]
    labels: npt.NDArray[np.int64]


def _splits(
    source: str | os.PathLike[str], size: int, seed: int, channels: int
) -> dict[str, _Part]:
    """Training and test images of a source."""
    if str(source) == "digits":
        from ..digits import load

        pixels, digits, test = load(size)
        images = np.repeat((pixels[:, None] / np.float32(127.5) - 1), channels, axis=1)
        files = [f"{i:04d}.png" for i in range(len(images))]
        parts = {}
        for split, rows in (("train", ~test), ("test", test)):
            where = np.flatnonzero(rows)
            names = [files[i] for i in where]
            mine = images[where].astype(np.float32)
            parts[split] = _Part(mine.__getitem__, names, names, digits[where])
        return parts
    everything = ImageDataset.from_folder(Path(source))
    try:
        sets = {split: ImageDataset.from_folder(Path(source), split) for split in ("train", "test")}
    except ValueError:
        train, test_set = everything.split_validation(_TEST_FRACTION, seed)
        sets = {"train": train, "test": test_set}
    return {
        split: _Part(
            partial(part.load, size=size, channels=channels), part.files, part.groups, part.labels
        )
        for split, part in sets.items()
    }


def _balanced(
    labels: npt.NDArray[np.int64], limit: int | None, rng: np.random.Generator
) -> list[tuple[int, bool, bool]]:
    """(index, lesion, decoy) of the images taken, all four kinds equally often in each class."""
    order = rng.permutation(len(labels))
    order = order[: limit or len(order)]
    turns: dict[int, int] = {}
    taken = []
    for i in order:
        turn = turns.setdefault(int(labels[i]), int(rng.integers(4)))
        taken.append((int(i), bool(turn & 1), bool(turn & 2)))
        turns[int(labels[i])] = (turn + 1) % 4
    return sorted(taken)


def _stem(file: str) -> str:
    """A file's path as one name: its split and class are no longer what they were."""
    return file.rpartition(".")[0].replace("/", "_")


def _save(path: Path, pixels: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
