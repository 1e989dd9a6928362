# SPDX-License-Identifier: Apache-2.0
"""Planted features: exact masks, no other trace of the class, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cae_fast.data import ImageDataset
from cae_fast.evaluation.planted import KINDS, Kind, plant, write_planted


def grey(side: int = 32, level: float = -0.4) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.05, (1, side, side))
    return (level + noise).astype(np.float32)


def as_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint((image[0] + 1) / 2 * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_pixels_outside_the_masks_are_untouched(kind: Kind, seed: int) -> None:
    image = grey()
    decoy = kind == "decoy"
    planted = plant(image, kind, lesion=True, decoy=decoy, rng=np.random.default_rng(seed))
    changed = planted.pixels != as_uint8(image)
    outside = ~(planted.mask | planted.decoy)
    assert not changed[outside].any()
    assert changed[planted.mask].mean() > 0.6
    assert 0.005 < planted.mask.mean() < 0.2
    assert planted.decoy.any() == decoy
    assert not (planted.mask & planted.decoy).any()


def test_a_texture_keeps_the_mean_and_a_blob_raises_it() -> None:
    image = grey()
    for kind, low, high in (("texture", -1.0, 1.0), ("blob", 15.0, 130.0)):
        planted = plant(image, kind, lesion=True, rng=np.random.default_rng(1))  # type: ignore[arg-type]
        change = planted.pixels.astype(float) - as_uint8(image)
        assert low < change[planted.mask].mean() < high


def test_places_and_sizes_vary() -> None:
    masks = [
        plant(grey(), "blob", lesion=True, rng=np.random.default_rng(s)).mask for s in range(12)
    ]
    centres = {tuple(np.argwhere(m).mean(axis=0).round().astype(int)) for m in masks}
    assert len(centres) > 9
    assert len({int(m.sum()) for m in masks}) > 6


def test_nothing_planted_is_the_image_itself() -> None:
    planted = plant(grey(), "decoy", lesion=False, rng=np.random.default_rng(0))
    assert (planted.pixels == as_uint8(grey())).all()
    assert not planted.mask.any()


def test_colour_images_change_in_every_channel() -> None:
    image = np.repeat(grey(), 3, axis=0)
    planted = plant(image, "blob", lesion=True, rng=np.random.default_rng(0))
    assert planted.pixels.shape == (32, 32, 3)
    changed = planted.pixels != as_uint8(grey())[..., None]
    assert (changed.all(axis=2) == changed.any(axis=2)).all()


def test_digits_as_a_data_set(tmp_path: Path) -> None:
    folder = write_planted(tmp_path / "a", "digits", kind="decoy", size=32, seed=3, limit=48)
    again = write_planted(tmp_path / "b", "digits", kind="decoy", size=32, seed=3, limit=48)
    other = write_planted(tmp_path / "c", "digits", kind="decoy", size=32, seed=4, limit=48)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (again / f).read_bytes() for f in files)
    assert (folder / "metadata.csv").read_bytes() != (other / "metadata.csv").read_bytes()
    for split in ("train", "test"):
        data = ImageDataset.from_folder(folder, split)
        counts = data.class_counts()
        assert sum(counts.values()) == 48
        assert abs(counts["clear"] - counts["lesion"]) <= 10
        decoys = np.array([(folder / "decoys" / file).is_file() for file in data.files])
        for label in (0, 1):  # the decoy says nothing about the class
            assert 0.25 < decoys[data.labels == label].mean() < 0.75
        for i, label in enumerate(data.labels):
            path = data.mask_path(i)
            assert (path is not None) == bool(label)
            if path is not None:
                assert np.asarray(Image.open(path)).any()


def test_groups_and_splits_of_real_images_are_kept(tmp_path: Path, shared_dir: Path) -> None:
    source = shared_dir / "data" / "chest_xray"
    folder = write_planted(tmp_path / "x", source, kind="texture", size=32, limit=12)
    train, test = (ImageDataset.from_folder(folder, s) for s in ("train", "test"))
    assert len(train) == len(test) == 12
    assert not set(train.groups) & set(test.groups)
    real = ImageDataset.from_folder(source, "test")
    assert set(test.groups) <= set(real.groups)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "star"}, "kind must be one of"),
        ({"size": 8}, "size must be"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"limit": 1}, "limit must be"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_planted(tmp_path / "x", "digits", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
