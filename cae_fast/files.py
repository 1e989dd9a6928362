# SPDX-License-Identifier: Apache-2.0
"""Atomic output: a file or folder appears whole under its name, or not at all.

Output is written beside its final name under a hidden temporary name and renamed when complete. The
writer holds a lock on what it writes, which ends with the process: the next write to the same name
removes what a killed one left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import CAEError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _sync_directory(path: Path) -> None:
    """Makes a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    """Flushes every file and folder below `path` to disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as written:
                os.fsync(written.fileno())
        _sync_directory(Path(folder))


def _file_mode() -> int:
    """Permission bits a newly created file gets under the process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _marker(final: Path) -> str:
    """Start of the names of temporary files and folders for `final`."""
    return f".{final.name[:100]}."


def _sweep(final: Path) -> None:
    """Removes the temporary files and folders that killed writers of `final` left."""
    for stale in final.parent.glob(f"{_glob_escape(_marker(final))}*.tmp*"):
        try:
            descriptor = os.open(stale, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)
        except OSError:
            continue  # its writer is alive, or the file system has no locks
        finally:
            os.close(descriptor)


def _glob_escape(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Marks `path` as being written for as long as the block, or the process, lasts."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; false where system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    done: int = renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[Path]:
    """Writes a file beside its final name and renames it when the block ends well.

    The old file stays untouched until the rename; after an exception the temporary file is removed.
    Data and folder are flushed to disk, so that a crash leaves either the old or the new file.

    Args:
        path: Final name. Its folder must exist.
        mode: Permission bits; None is what a new file gets.

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
    _sweep(final)
    descriptor, name = tempfile.mkstemp(
        prefix=_marker(final), suffix=".tmp" + final.suffix, dir=final.parent
    )
    os.close(descriptor)
    temporary = Path(name)
    with _locked(temporary):
        try:
            yield temporary
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            os.chmod(temporary, _file_mode() if mode is None else mode)
            os.replace(temporary, final)
            _sync_directory(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Writes a folder beside its final name and renames it when the block ends well.

    An old folder is exchanged with the new one in a single step where the system can (Linux); a
    crash leaves either the old or the new folder under the name.

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
    with made_parents(final):
        _sweep(final)
        temporary = Path(tempfile.mkdtemp(prefix=_marker(final), suffix=".tmp", dir=final.parent))
        yield from _filled(temporary, final)


def _filled(temporary: Path, final: Path) -> Iterator[Path]:
    """Hands out a temporary folder, then puts it in the place of `final`."""
    with _locked(temporary):
        try:
            yield temporary
            os.chmod(temporary, _file_mode() | ((_file_mode() & 0o444) >> 2))
            _sync_tree(temporary)
            if not final.is_dir():
                os.replace(temporary, final)
            elif not _exchange(temporary, final):
                shutil.rmtree(final)
                os.replace(temporary, final)
            _sync_directory(final.parent)
        finally:
            # What is left under the temporary name: an unfinished folder, or the replaced one.
            shutil.rmtree(temporary, ignore_errors=True)


def check_output_directory(
    path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool | None = None
) -> None:
    """Refuses an output folder that would mix with what lies there.

    Args:
        path: The folder; it need not exist.
        overwrite: Allow a folder that is not empty, to be replaced.
        resume: Allow a folder that is not empty, to be continued; None where nothing can be.

    Raises:
        CAEError: `path` is a file, or a non-empty folder and neither flag is set.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise CAEError(f"{folder} is a file, expected a folder to write into")
    if folder.is_dir() and not (overwrite or resume) and any(folder.iterdir()):
        go_on = "" if resume is None else "--resume to go on, "
        raise CAEError(
            f"{folder} is not empty; add {go_on}--overwrite to replace it, or choose another folder"
        )


def check_parent(path: str | os.PathLike[str]) -> None:
    """Checks that the folder of an output exists or can be made; makes nothing.

    Args:
        path: Name of the output.

    Raises:
        CAEError: Something above the output is a file, or a folder that cannot be written to.
        OSError: A name is too long, or links lead in a circle.
    """
    parent = Path(path).absolute().parent
    nearest = next(folder for folder in (parent, *parent.parents) if os.path.lexists(folder))
    nearest.stat()  # a link to nothing or to itself, which mkdir would call an existing file
    if not nearest.is_dir():
        raise CAEError(f"{path}: {nearest} is a file, wanted a folder to write into")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CAEError(f"{path}: the folder {nearest} cannot be written to")


@contextlib.contextmanager
def made_parents(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes the folders above an output; those it made go again when the block fails.

    Args:
        path: Name of the output, to be written in the block.

    Raises:
        OSError: The file system refused.
    """
    parent = Path(path).absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not there, or others write into it by now
                folder.rmdir()
        raise
