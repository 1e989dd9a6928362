# SPDX-License-Identifier: Apache-2.0
"""Folder layouts, junk, groups, splits: what `ImageDataset` makes of a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cae_fast.data import ImageDataset
from cae_fast.errors import CAEError, ImageDecodeError
from cae_fast.images import iter_batches


def write_png(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def make(root: Path, counts: Mapping[str, int]) -> Path:
    """Write `counts` images into each folder, all of different grey."""
    for folder, count in counts.items():
        for number in range(count):
            write_png(root / folder / f"{number}.png", number)
    return root


def refusal(root: Path, split: str | None = None) -> str:
    with pytest.raises(CAEError) as caught:
        ImageDataset.from_folder(root, split)
    text = str(caught.value)
    assert "\n" not in text
    assert str(root) in text or split == "dev"
    return text


# ---- layouts


def test_class_folders(tmp_path: Path) -> None:
    make(tmp_path, {"sick": 3, "healthy": 2})
    dataset = ImageDataset.from_folder(tmp_path)
    assert dataset.class_names == ("healthy", "sick")
    assert dataset.files == ["healthy/0.png", "healthy/1.png"] + [f"sick/{i}.png" for i in range(3)]
    np.testing.assert_array_equal(dataset.labels, [0, 0, 1, 1, 1])
    assert dataset.labels.dtype == np.int64
    assert dataset.groups == dataset.files
    assert dataset.ignored == ()
    assert len(dataset) == 5
    assert dataset.class_counts() == {"healthy": 2, "sick": 3}
    assert "sick: 3" in repr(dataset)
    assert ImageDataset.from_folder(tmp_path, "train").files == dataset.files
    assert "no splits" in refusal(tmp_path, "test")


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "TESTING")])
def test_split_folders(tmp_path: Path, train: str, test: str) -> None:
    make(tmp_path, {f"{train}/b": 2, f"{train}/a": 3, f"{test}/b": 2, "masks/b": 1, "extra": 1})
    dataset = ImageDataset.from_folder(tmp_path, "train")
    assert dataset.files[0] == f"{train}/a/0.png"
    assert dataset.class_counts() == {"a": 3, "b": 2}
    assert len(dataset.ignored) == 2
    with pytest.warns(UserWarning, match=r"fewer than two images in class a \(0\) of split test"):
        held_out = ImageDataset.from_folder(tmp_path, "test")
    assert held_out.class_names == ("a", "b")  # of all splits, so that labels agree
    np.testing.assert_array_equal(held_out.labels, [1, 1])
    assert len(ImageDataset.from_folder(tmp_path)) == 7
    assert "no images of split 'val'; seen: test, train" in refusal(tmp_path, "val")
    assert "split must be 'train', 'test', 'val' or None" in refusal(tmp_path, "dev")


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    make(tmp_path, {"val/a": 1, "valid/a": 1})
    assert "val, valid name the same split" in refusal(tmp_path)


def test_authors_layout(tmp_path: Path) -> None:
    make(tmp_path, {"trainA_img": 2, "trainB_img": 3, "testA_img": 2, "testB_img": 2})
    for name in ("slice 9.png", "slice 10.png", "noext.png"):
        write_png(tmp_path / "trainB_img" / name)
    train = [
        "0.png 0",
        "1.png\t0",
        "2.png 10",
        "slice 9.png 2",
        "slice 10.png 2",
        "",
        "noext 10",
        "gone.png 1",
    ]
    (tmp_path / "trainAB_img-name_label.txt").write_text("\ufeff" + "\r\n".join(train))
    (tmp_path / "testAB_img-name_label.txt").write_text("0.png 2\n1.png 2\n")
    dataset = ImageDataset.from_folder(tmp_path, "train")
    assert dataset.class_names == ("0", "2", "10")  # in the order of the numbers
    found = dict(zip(dataset.files, dataset.labels.tolist(), strict=True))
    assert found == {
        "trainA_img/0.png": 0,
        "trainA_img/1.png": 0,
        "trainB_img/0.png": 0,
        "trainB_img/1.png": 0,
        "trainB_img/2.png": 2,
        "trainB_img/slice 9.png": 1,
        "trainB_img/slice 10.png": 1,
        "trainB_img/noext.png": 2,
    }
    assert dataset.ignored == ("gone.png: in a train label file, but no such image",)
    with pytest.warns(UserWarning, match="fewer than two"):
        held_out = ImageDataset.from_folder(tmp_path, "test")
    assert held_out.labels.tolist() == [1, 1, 1, 1]


def test_authors_layout_without_label_files(tmp_path: Path) -> None:
    make(tmp_path, {"trainA_img": 2, "trainB_img": 3})
    dataset = ImageDataset.from_folder(tmp_path)
    assert dataset.class_names == ("0", "1")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.png 0\n1.png one\n", r"label\.txt:2: wanted 'name label' .* got '1\.png one'"),
        ("0.png\n", r"label\.txt:1: wanted 'name label'"),
        ("0.png 0\n0.png 1\n", r"label\.txt:2: '0\.png' has label 1 here and 0 before"),
        ("0.png 0\n", r"3 images have no line .*: trainA_img/1\.png, trainB_img/1\.png"),
    ],
)
def test_wrong_label_files(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, {"trainA_img": 2, "trainB_img": 3})
    (tmp_path / "trainAB_img-name_label.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageDataset.from_folder(tmp_path)


def test_label_file_that_is_no_text(tmp_path: Path) -> None:
    make(tmp_path, {"trainA_img": 2, "trainB_img": 3})
    (tmp_path / "trainAB_img-name_label.txt").write_bytes(b"\xff\xfe0\x00")
    assert "cannot be read as UTF-8" in refusal(tmp_path)


# ---- bad folders


def test_refused_folders(tmp_path: Path) -> None:
    assert "cannot be listed: No such file" in refusal(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "cannot be listed: Not a directory" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no class with images; seen: 0 folders; wanted" in refusal(tmp_path / "empty")
    loose = make(tmp_path / "loose", {".": 3})
    assert "no class with images; seen: 0 folders and 3 images outside" in refusal(loose)
    one = make(tmp_path / "one", {"train/only": 3, "train/bare/": 0})
    (one / "train" / "bare").mkdir()
    assert "one class (only) with images" in refusal(one)


def test_nested_folders_are_listed(tmp_path: Path) -> None:
    root = make(tmp_path / "twice", {"set/train/a": 1, "set/train/b": 1, "set/test/a": 1})
    text = refusal(root)
    assert f"{root / 'set'}: holds 2 folders (test, train), not images" in text
    deep = make(tmp_path / "deep", {"train/a": 2, "train/b/old": 2, "train/b/new": 2})
    assert "holds 2 folders (new, old)" in refusal(deep)


def test_junk_is_passed_over_and_listed(tmp_path: Path) -> None:
    make(tmp_path, {"train/a": 2, "train/b": 2, "__MACOSX/train/a": 1, ".cache/a": 1})
    make(tmp_path, {"train/.thumbs": 1, "train/a/.hidden": 1})
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "notes.txt", "0.png.part"):
        (tmp_path / "train" / "a" / name).touch()
    (tmp_path / "train" / "stray.png").touch()
    (tmp_path / "train" / "none").mkdir()
    os.mkfifo(tmp_path / "train" / "b" / "pipe.png")
    dataset = ImageDataset.from_folder(tmp_path, "train")
    assert len(dataset) == 4
    text = "\n".join(dataset.ignored)
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "notes.txt", "0.png.part", "stray.png"):
        assert name in text
    for name in ("__MACOSX/", ".cache/", ".thumbs/", "train/none/: no images", "pipe.png"):
        assert name in text


def test_links_are_followed(tmp_path: Path) -> None:
    store = make(tmp_path / "store", {"x": 2, "y": 2})
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(store / "x")
    (root / "b").mkdir()
    (root / "b" / "0.png").symlink_to(store / "y" / "0.png")
    (root / "b" / "gone.png").symlink_to(store / "y" / "gone.png")
    dataset = ImageDataset.from_folder(root)
    assert dataset.files == ["a/0.png", "a/1.png", "b/0.png", "b/gone.png"]
    with pytest.raises(ImageDecodeError, match=r"gone\.png: cannot be read: No such file"):
        dataset.load()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    make(tmp_path, {"a": 2, "b": 2})
    try:
        (tmp_path / "a" / os.fsdecode(b"\xff.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert "not valid UTF-8; rename it" in refusal(tmp_path)


def test_small_classes_warn(tmp_path: Path) -> None:
    make(tmp_path, {"a": 1, "b": 2})
    with pytest.warns(UserWarning, match=r"fewer than two images in class a \(1\)"):
        assert len(ImageDataset.from_folder(tmp_path)) == 3


# ---- metadata.csv


def test_metadata_gives_groups_and_masks(tmp_path: Path) -> None:
    make(tmp_path, {"train/a": 2, "train/b": 2, "masks/train/b": 1, "lesions": 1})
    (tmp_path / "metadata.csv").write_text(
        "file,split,label,group,note,mask,source\n"
        'train/a/0.png,train,a,patient 1,"two\nlines, and a comma",lesions/0.png,\n'
        "train/b/1.png,train,b,patient 1,,,\n"
        "train/b/9.png,train,b,patient 2,,,\n",
        encoding="utf-8-sig",
    )
    dataset = ImageDataset.from_folder(tmp_path)
    assert dataset.groups == ["patient 1", "train/a/1.png", "train/b/0.png", "patient 1"]
    assert dataset.masks == ["lesions/0.png", None, "masks/train/b/0.png", None]
    assert dataset.mask_path(0) == tmp_path / "lesions" / "0.png"
    assert dataset.mask_path(1) is None
    assert "train/b/9.png: in metadata.csv, but no such image" in dataset.ignored


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,group\na/0.png,1\n", "csv:2: no value in the column 'file'"),
        ("file,group\na/0.png,1\na/0.png,2\n", "csv:3: 'a/0.png' is listed twice"),
        ("file,mask\na/0.png,../../secret.png\n", "leaves the folder"),
        ("file,mask\na/0.png,/secret.png\n", "leaves the folder"),
        ('file,group\n"a/0.png,1\n', "cannot be read as CSV"),
    ],
)
def test_wrong_metadata(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "metadata.csv").write_text(text)
    assert message in refusal(tmp_path)


def test_a_group_in_two_splits_warns(tmp_path: Path) -> None:
    make(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2})
    (tmp_path / "metadata.csv").write_text("file,group\ntrain/a/0.png,p7\ntest/b/1.png,p7\n")
    with pytest.warns(UserWarning, match="1 groups of metadata.csv are in more than one split"):
        ImageDataset.from_folder(tmp_path, "train")


# ---- lists, subsets, pixels


def test_lists_are_checked() -> None:
    files = ["a.png", "b.png"]
    good = ImageDataset("/data", files, [0, 1], ["x", "y"])
    assert good.paths == [Path("/data/a.png"), Path("/data/b.png")]
    assert good.groups == files
    for arguments, message in (
        ((files, [0], ["x", "y"]), r"labels must have one entry per file \(2\), got 1"),
        ((files, [0, 2], ["x", "y"]), r"labels must be in 0\.\.1, got 2"),
        ((files, [0, -1], ["x", "y"]), r"labels must be in 0\.\.1, got -1"),
        ((files, [0, 1], ["x", "x"]), "class_names repeat: x, x"),
        ((files, [0, 1], ["x", "y"], ["g"]), "groups must have one entry per file"),
        ((files, [0, 1], ["x", "y"], [], [None]), "masks must have one entry per file"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageDataset("/data", *arguments)  # type: ignore[arg-type]


def test_subset(tmp_path: Path) -> None:
    dataset = ImageDataset.from_folder(make(tmp_path, {"a": 3, "b": 2}))
    part = dataset.subset([4, 0])
    assert part.files == ["b/1.png", "a/0.png"]
    assert part.labels.tolist() == [1, 0]
    assert part.class_names == dataset.class_names
    assert dataset.subset(dataset.labels == 1).files == ["b/0.png", "b/1.png"]
    assert len(dataset.subset([])) == 0
    for bad in ([5], [-1], [0.5], [[0]], [True, False]):
        with pytest.raises(ValueError, match="indices must be"):
            dataset.subset(bad)  # type: ignore[arg-type]


def test_load(tmp_path: Path) -> None:
    dataset = ImageDataset.from_folder(make(tmp_path, {"a": 3, "b": 2}))
    images = dataset.load(size=4, channels=3)
    assert images.shape == (5, 3, 4, 4)
    levels = np.array([0, 1, 2, 0, 1]) / 127.5 - 1
    np.testing.assert_allclose(images[:, 0, 0, 0], levels, atol=1e-6)
    assert dataset.load([3, 2]).shape == (2, 1, 6, 8)
    np.testing.assert_array_equal(dataset.load([3, 2], size=4, channels=3), images[[3, 2]])
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(ImageDecodeError, match=r"a/1\.png"):
        dataset.load(size=4, channels=3)
    some, reasons = dataset.load(size=4, channels=3, on_error="collect")
    assert [bool(reason) for reason in reasons] == [False, True, False, False, False]
    np.testing.assert_array_equal(np.delete(some, 1, 0), np.delete(images, 1, 0))
    streamed = iter_batches(dataset.paths, 2, size=4, channels=3, on_error="collect")
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in streamed]), some)


# ---- real images


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("chest_xray", {"normal": (500, 150), "pneumonia": (500, 150)}),
        ("brain_tumor_mri", dict.fromkeys(("glioma", "meningioma", "pituitary"), (270, 90))),
        (
            "blood_cells",
            dict.fromkeys(("eosinophil", "lymphocyte", "monocyte", "neutrophil"), (95, 25)),
        ),
    ],
)
def test_real_folders(shared_dir: Path, name: str, counts: dict[str, tuple[int, int]]) -> None:
    root = shared_dir / "data" / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = [ImageDataset.from_folder(root, split) for split in ("train", "test")]
    for part, column in zip(parts, (0, 1), strict=True):
        assert part.class_counts() == {key: value[column] for key, value in counts.items()}
    train, validation = parts[0].split_validation()
    assert not set(train.groups) & set(validation.groups)
    assert len(train) + len(validation) == len(parts[0])
    assert min(validation.class_counts().values()) >= 9
    masks = [path for path in map(parts[1].mask_path, range(len(parts[1]))) if path]
    assert len(masks) == (len(parts[1]) if name == "brain_tumor_mri" else 0)
    assert all(path.is_file() for path in masks)
    assert parts[1].load([0, 30], size=32, channels=1).shape == (2, 1, 32, 32)
