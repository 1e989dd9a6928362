# SPDX-License-Identifier: Apache-2.0
"""The bundled digits as an image folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cae_fast import digits
from cae_fast.data import ImageDataset
from cae_fast.errors import MissingExtra

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.write_digits(tmp_path_factory.mktemp("digits") / "out", size=16)


def test_folder_is_a_data_set(folder: Path) -> None:
    train = ImageDataset.from_folder(folder, "train")
    test = ImageDataset.from_folder(folder, "test")
    assert train.class_names == test.class_names == tuple("0123456789")
    assert len(train) + len(test) == 1797
    assert train.ignored == ()
    for name, count in test.class_counts().items():
        assert count == round(0.2 * (count + train.class_counts()[name]))
    numbers = [Path(file).stem for file in train.files + test.files]
    assert len(set(numbers)) == 1797
    images = test.load()
    assert images.shape == (len(test), 1, 16, 16)
    assert images.min() == -1.0
    assert images.max() == 1.0


def test_images_show_the_digits(folder: Path) -> None:
    source = datasets.load_digits()
    train = ImageDataset.from_folder(folder, "train")
    for index in (0, 500, 1000):
        number = int(Path(train.files[index]).stem)
        assert source.target[number] == train.labels[index]
        with Image.open(train.paths[index]) as image:
            assert image.mode == "L"
            small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255 * 16
        assert np.corrcoef(small.ravel(), source.images[number].ravel())[0, 1] > 0.97


def test_written_alike_every_time(folder: Path, tmp_path: Path) -> None:
    again = digits.write_digits(tmp_path / "again", size=16)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert names == sorted(path.relative_to(again) for path in again.rglob("*.png"))
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_arrays() -> None:
    images, labels, test = digits.load(8)
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    source = datasets.load_digits()
    np.testing.assert_array_equal(images, np.rint(source.images / 16 * 255))
    np.testing.assert_array_equal(labels, source.target)
    assert test.sum() == 359
    assert digits.load(32)[0].shape == (1797, 32, 32)


def test_a_full_folder_is_kept(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="not empty"):
        digits.write_digits(folder)
    assert sorted(folder.rglob("*")) == before


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Image.Image.save
    calls = []

    def failing(self: Image.Image, *args: object, **options: object) -> None:
        calls.append(1)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        saved(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(OSError, match="No space left"):
        digits.write_digits(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 7, 513, 32.0, True, "32"])
def test_size_is_checked(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=r"size must be an integer in 8\.\.512"):
        digits.write_digits(tmp_path / "out", size)
    assert not (tmp_path / "out").exists()


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"scikit-learn .* pip install .*\[digits\]"):
        digits.load()
