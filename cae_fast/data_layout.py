# SPDX-License-Identifier: Apache-2.0
"""Find the images, classes, splits and groups of a folder; `cae_fast.data` names the layouts."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .decoding import SUFFIXES
from .errors import CAEError

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_AUTHORS_FOLDERS = {  # folder -> (split, label where there is no label file)
    "trainA_img": ("train", 0),
    "trainB_img": ("train", 1),
    "testA_img": ("test", 0),
    "testB_img": ("test", 1),
}
_LABEL_FILES = "*_img-name_label.txt"
_NEVER_CLASSES = frozenset({"masks", "__MACOSX"})
_WANTED = (
    "wanted DIR/{train,test}/{class}/*.png or DIR/{class}/*.png with two classes or more, "
    "or the authors' trainA_img, trainB_img, testA_img, testB_img"
)


@dataclass
class FoundImage:
    """One image of a folder: relative path, split ("" for none), class, group, mask."""

    file: str
    split: str
    class_name: str
    label: int = -1
    group: str = ""
    mask: str | None = None


@dataclass
class FoundFolder:
    """What `scan_folder` found; `images` are those of the split asked for."""

    root: Path
    images: list[FoundImage] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    ignored: list[str] = field(default_factory=list)
    shared_groups: list[str] = field(default_factory=list)


def scan_folder(root: Path, split: str | None) -> FoundFolder:
    """List the images of one split (None: all); see `ImageDataset.from_folder`.

    Raises:
        CAEError: As described there.
    """
    if split is not None and split not in _SPLIT_NAMES.values():
        raise CAEError(f"split must be 'train', 'test', 'val' or None, got {split!r}")
    found = FoundFolder(root)
    folders, files = _entries(root)
    splits = {name: _SPLIT_NAMES[name.lower()] for name in folders if name.lower() in _SPLIT_NAMES}
    _check_split_folders(root, splits)
    numeric = any(name in _AUTHORS_FOLDERS for name in folders)
    if numeric:
        used = [name for name in folders if name in _AUTHORS_FOLDERS]
        _scan_authors(found, used)
    elif splits:
        used = list(splits)
        for name, split_name in splits.items():
            _scan_classes(found, name, split_name)
    else:
        used = [name for name in folders if name not in _NEVER_CLASSES and name[0] != "."]
        _scan_classes(found, "", "")
    found.ignored += [f"{name}/: not a part of the data" for name in folders if name not in used]
    found.ignored += [f"{name}: not in a class folder" for name in files if _is_image(name)]
    names = {image.class_name for image in found.images}
    found.class_names = tuple(sorted(names, key=int) if numeric else sorted(names))
    _check_classes(found, folders, files)
    _read_metadata(found)
    _select(found, split)
    return found


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the other entries in `folder`, sorted; links are followed."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CAEError(f"{folder}: cannot be listed: {reason}; {_WANTED}") from error
    for name, _ in listed:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise CAEError(f"{folder}: the name {name!r} is not valid UTF-8; rename it") from error
    return [name for name, is_dir in listed if is_dir], [n for n, is_dir in listed if not is_dir]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _check_split_folders(root: Path, splits: dict[str, str]) -> None:
    twice = sorted(name for name, value in splits.items() if list(splits.values()).count(value) > 1)
    if twice:
        raise CAEError(f"{root}: the folders {', '.join(twice)} name the same split; keep one")


def _images_in(found: FoundFolder, folder: str) -> list[str]:
    """Relative paths of the image files in one folder; the rest goes to `ignored`."""
    nested, names = _entries(found.root / folder)
    nested = [name for name in nested if not name.startswith(".") and name not in _NEVER_CLASSES]
    if nested:
        listed = ", ".join(nested[:5]) + (", ..." if len(nested) > 5 else "")
        raise CAEError(
            f"{found.root / folder}: holds {len(nested)} folders ({listed}), not images; {_WANTED}"
        )
    images = []
    for name in names:
        file = f"{folder}/{name}"
        if not _is_image(name):
            reason = "hidden" if name.startswith(".") else "not an image by its name"
            found.ignored.append(f"{file}: {reason}")
        elif _is_special(found.root / file):
            found.ignored.append(f"{file}: not a regular file")
        else:
            images.append(file)
    return images


def _is_special(path: Path) -> bool:
    """Whether opening the path could block, as a pipe does; a broken link is not special."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _scan_classes(found: FoundFolder, folder: str, split: str) -> None:
    """Add the images of DIR/{folder}/{class}/*."""
    classes, files = _entries(found.root / folder)
    if folder:
        found.ignored += [f"{folder}/{name}: not in a class folder" for name in files]
    for name in classes:
        if name.startswith(".") or name in _NEVER_CLASSES:
            if folder:
                found.ignored.append(f"{folder}/{name}/: not a part of the data")
            continue
        images = _images_in(found, f"{folder}/{name}" if folder else name)
        if not images:
            found.ignored.append(f"{folder}/{name}/: no images".lstrip("/"))
        found.images += [FoundImage(file, split, name) for file in images]


def _scan_authors(found: FoundFolder, folders: Iterable[str]) -> None:
    """Add the images of the authors' folders, labelled by their label files."""
    tables = {split: _read_label_files(found.root, split) for split in ("train", "test")}
    unused = {split: set(table) for split, table in tables.items()}
    missing = []
    for folder in folders:
        split, default = _AUTHORS_FOLDERS[folder]
        table = tables[split]
        for file in _images_in(found, folder):
            name = PurePosixPath(file).name
            key = name if name in table else PurePosixPath(name).stem
            if table and key not in table:
                missing.append(file)
                continue
            unused[split].discard(key)
            label = table.get(key, default)
            found.images.append(FoundImage(file, split, str(label)))
    if missing:
        raise CAEError(
            f"{found.root}: {len(missing)} images have no line 'name label' in the label files "
            f"({_LABEL_FILES}): {', '.join(missing[:5])}"
        )
    for split, names in unused.items():
        found.ignored += [
            f"{name}: in a {split} label file, but no such image" for name in sorted(names)
        ]
    found.images.sort(key=lambda image: (image.split != "train", int(image.class_name)))


def _read_label_files(root: Path, split: str) -> dict[str, int]:
    """Labels by image name of one split; empty where there is no label file."""
    labels: dict[str, int] = {}
    for path in sorted(root.glob(_LABEL_FILES)):
        if not path.name.startswith(split):
            continue
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            name, _, label = line.strip().replace("\t", " ").rpartition(" ")
            name = name.strip()
            if not name or not label.isdecimal():
                raise CAEError(
                    f"{path}:{number}: wanted 'name label' with a label of 0, 1, ..., "
                    f"got {line.strip()[:80]!r}"
                )
            if labels.setdefault(name, int(label)) != int(label):
                raise CAEError(
                    f"{path}:{number}: {name!r} has label {label} here and {labels[name]} before"
                )
    return labels


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CAEError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _check_classes(found: FoundFolder, folders: list[str], files: list[str]) -> None:
    """Refuse a folder of fewer than two classes, saying what was there."""
    if len(found.class_names) > 1:
        return
    loose = sum(_is_image(name) for name in files)
    seen = [f"{len(folders)} folders"]
    if folders:
        seen[0] += f" ({', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''})"
    if loose:
        seen.append(f"{loose} images outside class folders")
    classes = "no class" if not found.class_names else f"one class ({found.class_names[0]})"
    raise CAEError(f"{found.root}: {classes} with images; seen: {' and '.join(seen)}; {_WANTED}")


def _read_metadata(found: FoundFolder) -> None:
    """Take groups and masks from metadata.csv, masks also from DIR/masks."""
    path = found.root / "metadata.csv"
    rows: dict[str, dict[str, str]] = {}
    if path.is_file():
        lines = _read_text(path).splitlines()
        try:
            table = list(csv.DictReader(lines, strict=True))
        except csv.Error as error:
            raise CAEError(f"{path}: cannot be read as CSV: {error}") from error
        for number, row in enumerate(table, start=2):
            file = row.get("file")
            if not file:
                raise CAEError(
                    f"{path}:{number}: no value in the column 'file'; wanted the columns "
                    f"file and optionally group, mask; got {', '.join(map(str, row))}"
                )
            if rows.setdefault(file, row) != row:
                raise CAEError(f"{path}:{number}: {file!r} is listed twice with other values")
    for image in found.images:
        row = rows.pop(image.file, {})
        image.group = (row.get("group") or "").strip() or image.file
        image.mask = _mask_of(found.root, image.file, (row.get("mask") or "").strip())
    found.ignored += [f"{file}: in metadata.csv, but no such image" for file in sorted(rows)]


def _mask_of(root: Path, file: str, named: str) -> str | None:
    if named:
        relative = PurePosixPath(named)
        if relative.is_absolute() or ".." in relative.parts:
            raise CAEError(f"{root / 'metadata.csv'}: mask {named!r} of {file} leaves the folder")
        return named
    beside = f"masks/{file}"
    return beside if (root / beside).is_file() else None


def _select(found: FoundFolder, split: str | None) -> None:
    """Number the classes, keep one split, and note the groups that are in several."""
    splits_of: dict[str, set[str]] = {}
    number = {name: i for i, name in enumerate(found.class_names)}
    for image in found.images:
        image.label = number[image.class_name]
        splits_of.setdefault(image.group, set()).add(image.split)
    found.shared_groups = sorted(group for group, names in splits_of.items() if len(names) > 1)
    present = {image.split for image in found.images}
    if split is None or (split == "train" and present == {""}):
        return
    found.images = [image for image in found.images if image.split == split]
    if not found.images:
        seen = ", ".join(sorted(present - {""})) or "no splits, only class folders"
        raise CAEError(f"{found.root}: no images of split {split!r}; seen: {seen}")
