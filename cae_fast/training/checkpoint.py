# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written atomically, read without unpickling code, last and best kept."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelFileError
from ..files import atomic_write

FORMAT_VERSION = 1
LAST, BEST = "last.pt", "best.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint; the old one stays whole until the new one is.

    Args:
        path: File to write.
        state: Tensors, numbers, texts, and lists and dicts of them.

    Raises:
        OSError: The file system refused (full, read-only).
    """
    with atomic_write(path) as temporary:
        archive = io.BytesIO()  # torch's own file writer aborts the process on a full disk
        torch.save({"format": FORMAT_VERSION, **state}, archive)
        temporary.write_bytes(archive.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint with torch's weights-only reader.

    Raises:
        ModelFileError: The file is missing, damaged, of another version, or no checkpoint.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such checkpoint; there is nothing to resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"{path}: not a readable checkpoint ({reason})") from error
    except Exception as error:  # pickle.UnpicklingError: more than tensors in it
        raise ModelFileError(f"{path}: refused, it holds more than tensors and numbers") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT_VERSION:
        seen = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ModelFileError(
            f"{path}: checkpoint format {seen!r}, this version reads {FORMAT_VERSION}"
        )
    return state
