# SPDX-License-Identifier: Apache-2.0
"""The folders above an output: checked before long work, made when there is something to write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import CAEError


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
