# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: preparing it, telling runs apart, and what the model file says of it."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import CAEError
from ..files import atomic_write, check_output_directory
from ..model import CAEConfig
from .options import MOST_CRITICS, TrainOptions

if TYPE_CHECKING:
    from .pipeline import Splits
    from .state import TrainingState

CLASS_ENCODER = "class_encoder.pt"  # after its warm-up
_OWN_FILES = ("config.json", "log.csv", "model.safetensors", CLASS_ENCODER)
_OWN_FOLDERS = ("checkpoints", "samples", "tensorboard")
# Options that may differ between a run and its continuation.
_FREE = {"data", "out", "classifier", "critic"}  # folders move; the data are told by their hash
_FREE |= {"resume", "overwrite", "quiet", "device", "compile_networks", "cache_bytes"}
_FREE |= {"log_every", "sample_every", "checkpoint_every"}
_FREE |= {"steps"}  # a run may be made longer; its rates then follow the new length


def critic_name(number: int) -> str:
    """File of a run's own critic; the first has number 0."""
    return "critic.pt2" if number == 0 else f"critic_{number + 1}.pt2"


def prepare_run(out: Path, options: TrainOptions, config: CAEConfig, *, write: bool) -> None:
    """Makes the folders and config.json; with `overwrite`, removes an earlier run's own files.

    Args:
        out: Folder of the run.
        options: Options of the run.
        config: Of the model.
        write: False in all processes but the first: nothing is done.

    Raises:
        CAEError: `out` is a file, or a folder that is not empty and neither resume nor overwrite
            is set.
        OSError: The file system refused.
    """
    if not write:
        return
    check_output_directory(out, overwrite=options.overwrite, resume=options.resume)
    if options.overwrite:
        critics = (critic_name(number) for number in range(MOST_CRITICS))
        for name in (*_OWN_FILES, *critics):
            (out / name).unlink(missing_ok=True)
        for name in _OWN_FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    for name in ("checkpoints", "samples"):
        (out / name).mkdir(parents=True, exist_ok=True)
    if not (options.resume and (out / "config.json").exists()):
        content = {"model": config.to_dict(), "options": options.to_dict()}
        with atomic_write(out / "config.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_same_run(
    saved: dict[str, Any], options: TrainOptions, fingerprint: str, path: Path
) -> None:
    """Refuses to continue a run with other options or data: the result would be neither's.

    Raises:
        CAEError: Something differs; all differences are listed. Or the run is longer already.
    """
    if options.steps < saved.get("step", 0):
        raise CAEError(
            f"{path} is at step {saved['step']}, beyond steps {options.steps}; give as many or more"
        )
    before = saved.get("options", {})
    now = options.to_dict()
    different = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name not in _FREE and before.get(name) != value
    ]
    if saved.get("data_sha256") != fingerprint:
        different.append("the images or labels of the data changed")
    if different:
        raise CAEError(
            f"{path} belongs to another run: {'; '.join(different)}; resume with the same "
            "options, or start anew with overwrite"
        )


def data_fingerprint(splits: Splits) -> str:
    """SHA-256 over names, sizes and labels of the training and validation images."""
    digest = hashlib.sha256()
    for part in (splits.train, splits.validation):
        for file, path, label in zip(part.files, part.paths, part.labels, strict=True):
            digest.update(f"{file}\0{path.stat().st_size}\0{label}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def provenance(
    options: TrainOptions,
    splits: Splits,
    fingerprint: str,
    state: TrainingState,
    measured: dict[str, Any],
) -> dict[str, Any]:
    """JSON values for the model file; folders are cut down to their last name."""
    said = options.to_dict()
    for name in ("data", "out", "classifier", "critic"):
        if isinstance(said[name], str):
            said[name] = Path(said[name]).name
    return {
        "origin": "cae_fast.training",
        "data": {
            "name": Path(options.data).resolve().name,
            "sha256": fingerprint,
            "train": splits.train.class_counts(),
            "validation": splits.validation.class_counts(),
        },
        "seed": options.seed,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "options": said,
        "promises": {"validation": measured},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "platform": sys.platform,
        },
    }
