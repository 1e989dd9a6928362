# SPDX-License-Identifier: Apache-2.0
"""Atomic output: a file or folder appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import CAEError


def _sync_directory(path: Path) -> None:
    """Makes a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_mode() -> int:
    """Permission bits a newly created file gets under the process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a file beside its final name and renames it when the block ends well.

    The old file stays untouched until the rename; after an exception the temporary file is
    removed. Data and folder are flushed to disk, so that a crash leaves either the old or the new
    file.

    Args:
        path: Final name. Its folder must exist.

    Yields:
        Path of the temporary file, to be written by the caller.

    Raises:
        CAEError: `path` is a folder, or its folder does not exist.
        OSError: The file system refused (full, read-only).
    """
    final = Path(path)
    if final.is_dir():
        raise CAEError(f"{final} is a folder, expected the name of a file to write")
    if not final.parent.is_dir():
        raise CAEError(
            f"{final.parent} does not exist or is no folder; it is needed to write {final.name}"
        )
    descriptor, name = tempfile.mkstemp(
        prefix=f".{final.name[:100]}.", suffix=".tmp" + final.suffix, dir=final.parent
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, _file_mode())
        os.replace(temporary, final)
        _sync_directory(final.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Writes a folder beside its final name and renames it when the block ends well.

    Args:
        path: Final name; parents are created.
        overwrite: Replace a folder that is not empty.

    Yields:
        Path of the temporary folder, to be filled by the caller.

    Raises:
        CAEError: `path` is a file, or a folder that is not empty and `overwrite` is false.
        OSError: The file system refused (full, read-only).
    """
    final = Path(path)
    check_output_directory(final, overwrite=overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{final.name[:100]}.", suffix=".tmp", dir=final.parent)
    )
    retired: Path | None = None
    try:
        yield temporary
        os.chmod(temporary, _file_mode() | ((_file_mode() & 0o444) >> 2))
        if final.is_dir():
            retired = Path(
                tempfile.mkdtemp(prefix=f".{final.name[:100]}.", suffix=".old", dir=final.parent)
            )
            os.replace(final, retired / "old")
        os.replace(temporary, final)
        _sync_directory(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if retired is not None and not final.exists() and (retired / "old").exists():
            os.replace(retired / "old", final)
        raise
    finally:
        if retired is not None:
            shutil.rmtree(retired, ignore_errors=True)


def check_output_directory(
    path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False
) -> None:
    """Refuses an output folder that would mix with what lies there.

    Args:
        path: The folder; it need not exist.
        overwrite: Allow a folder that is not empty, to be replaced.
        resume: Allow a folder that is not empty, to be continued.

    Raises:
        CAEError: `path` is a file, or a non-empty folder and neither flag is set.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise CAEError(f"{folder} is a file, expected a folder to write into")
    if folder.is_dir() and not (overwrite or resume) and any(folder.iterdir()):
        raise CAEError(
            f"{folder} is not empty; add --overwrite to replace it or choose another folder"
        )
