# SPDX-License-Identifier: Apache-2.0
"""The engines that backend "tensorrt" takes: found in a folder, checked, built where none fits."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from .. import __version__
from ..engine_files import SUFFIX, Manifest, read_engine, read_manifest
from ..errors import EngineError
from .build import EngineRequest, build_engine, describe
from .flavours import Flavour
from .timing import TimingCache

FOLDER_VARIABLE = "CAE_ENGINES"


def engine_folder() -> Path:
    """Where engines lie: the folder that `CAE_ENGINES` names, else one of the user's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "cae_fast" / "engines"


def fitting(
    folder: Path, request: EngineRequest, flavour: Flavour, gpu: str, key: bytes | None
) -> tuple[bytes, Manifest] | None:
    """A checked engine of a folder that does what is asked on a GPU.

    Files that are damaged, unsigned or of something else are passed over; of one that would fit but
    is damaged, a warning says so.

    Args:
        folder: Searched, not below.
        request: What it is to be; a larger `max_batch` is as good.
        flavour: That is installed.
        gpu: Architecture that is there.
        key: That must have signed it.
    """
    candidates = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    for path in candidates:
        try:
            manifest = read_manifest(path, key=key)
            if _fits(manifest, request, flavour, gpu):
                # Written anew since, it may be of something else: what counts is what was read.
                plan, manifest = read_engine(path, key=key)
                if _fits(manifest, request, flavour, gpu):
                    return plan, manifest
        except EngineError as error:
            warnings.warn(f"passed over: {error}", RuntimeWarning, stacklevel=3)
    return None


def _fits(manifest: Manifest, request: EngineRequest, flavour: Flavour, gpu: str) -> bool:
    classifier = request.classifier
    return (
        manifest.part == request.part
        and (manifest.flavour, manifest.version) == (flavour.name, flavour.version)
        and gpu in manifest.gpus
        and manifest.precision == request.precision
        and manifest.max_batch >= request.max_batch
        and manifest.model_sha256 == request.model.sha256
        and manifest.classifier_sha256 == (None if classifier is None else classifier.sha256)
        and manifest.built_by == __version__
    )


def engine_for(
    request: EngineRequest, flavour: Flavour, gpu: str, key: bytes | None
) -> tuple[bytes, Manifest]:
    """An engine for one GPU, of :func:`engine_folder`; built there where none fits.

    The folder is made for the owner alone.

    Raises:
        EngineError: None fits, and none can be built.
        OSError: The folder cannot be written to.
    """
    folder = engine_folder()
    found = fitting(folder, request, flavour, gpu, key)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = EngineRequest(**{**request.__dict__, "gpus": (gpu,)})
    path = folder / f"{request.part}-{describe(wanted, flavour)[0].key[:32]}{SUFFIX}"
    build_engine(wanted, path, flavour, key=key, timing=TimingCache(folder, key))
    return read_engine(path, key=key)
