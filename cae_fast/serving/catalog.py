# SPDX-License-Identifier: Apache-2.0
"""The models of a service: loaded, replaced while requests go on, looked up by name."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cae_fast.errors import BackendUnavailable, MissingExtra, OutOfMemory
from cae_fast.serving.core import sample_files
from cae_fast.serving.engines import EngineHandle
from cae_fast.serving.jobs import EngineLost, Refused
from cae_fast.serving.settings import MODEL_NAME, ModelFiles, Settings

log = logging.getLogger("cae_fast.serving")

_LOAD_ERRORS = (
    *(ValueError, OSError, BackendUnavailable, MissingExtra, OutOfMemory),
    *(EngineLost, TimeoutError),
)


@dataclass(frozen=True)
class ServedModel:
    """One version of a model, as every engine has it.

    Whoever works for a request (its route, a job that waits, a stream that is not at its end) holds
    this object, and as long as anybody does, the engines keep the version.

    Attributes:
        name: In addresses.
        version: Counts reloads, from 1.
        info: What :meth:`cae_fast.serving.core.EngineCore.load` said.
        samples: Files of its sample images.
    """

    name: str
    version: int
    info: dict[str, Any]
    samples: tuple[Path, ...]

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes; their indices where the model has none."""
        names: list[str] = self.info["class_names"]
        return names or [str(i) for i in range(self.num_classes)]

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.info["num_classes"])

    @property
    def image_size(self) -> int:
        """S."""
        return int(self.info["image_size"])

    @property
    def in_channels(self) -> int:
        """C."""
        return int(self.info["in_channels"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return self.in_channels, self.image_size, self.image_size

    @property
    def image_bytes(self) -> int:
        """Of one image as float32."""
        return 4 * self.in_channels * self.image_size**2

    def summary(self) -> dict[str, Any]:
        """What `GET /v1/models` says of it."""
        kept = ("image_size", "in_channels", "samples", "k", "backend", "device", "dtype")
        hashes = ("model_sha256", "bank_sha256", "classifier", "classifier_sha256")
        return {
            "name": self.name,
            "ready": True,
            "version": str(self.version),
            "class_names": self.class_names,
            **{key: self.info[key] for key in (*kept, *hashes)},
        }


class Catalog:
    """Models by name."""

    def __init__(self, settings: Settings, engines: Sequence[EngineHandle]) -> None:
        """Nothing is loaded yet.

        Args:
            settings: With the files of each model.
            engines: That get every model.
        """
        self._files = dict(settings.models)
        self._engines = engines
        self._current: dict[str, ServedModel] = {}
        self._versions = itertools.count(1)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> list[str]:
        """Of all models, loaded or not."""
        return list(self._files)

    @property
    def current(self) -> list[ServedModel]:
        """Models that are served."""
        return list(self._current.values())

    @property
    def complete(self) -> bool:
        """Whether every model was loaded."""
        return self._current.keys() == self._files.keys()

    def get(self, name: str | None) -> ServedModel:
        """A model; None is the first.

        Raises:
            Refused: 400: no name at all; 404: unknown; 503: not loaded.
        """
        if name is None:
            name = next(iter(self._files))
        if not MODEL_NAME.fullmatch(name):
            raise Refused(
                400, "bad_name", "a model's name is 1 to 64 letters, digits, '_', '.' or '-'"
            )
        if name not in self._files:
            raise Refused(404, "unknown_model", f"there is no model {name}")
        found = self._current.get(name)
        if found is None:
            raise Refused(503, "not_loaded", f"model {name} is not loaded", retry_after_s=1)
        return found

    async def load(self, name: str) -> ServedModel:
        """Loads a model from its files, and serves it instead of the version before.

        Every engine explains an image with the new version first. Where one cannot, the version
        before stays.

        Raises:
            Refused: 404: unknown; 500: it cannot be loaded (why is in the log).
        """
        files = self._files.get(name)
        if files is None:
            raise Refused(404, "unknown_model", f"there is no model {name}")
        async with self._lock:
            version = next(self._versions)
            try:
                infos = await asyncio.gather(
                    *(engine.load(name, version, files) for engine in self._engines)
                )
                served = ServedModel(name, version, infos[0], tuple(_samples(files)))
            except _LOAD_ERRORS as error:
                await self._drop(name, version)
                kept = name in self._current
                log.error(
                    "model %s cannot be loaded%s: %s",
                    name,
                    "; the one before stays" if kept else "",
                    error,
                )
                raise LoadFailed(name, str(error), kept=kept) from error
            self._retire(name)
            self._current[name] = served
        log.info("model loaded", extra={"fields": {"model": name, "version": version}})
        return served

    async def unload(self, name: str) -> None:
        """Serves a model no more, until it is loaded again.

        Raises:
            Refused: 404: unknown.
        """
        if name not in self._files:
            raise Refused(404, "unknown_model", f"there is no model {name}")
        self._retire(name)

    def _retire(self, name: str) -> None:
        """Takes a model's version away, and from the engines once nobody holds it."""
        model = self._current.pop(name, None)
        if model is None:
            return
        version, held = model.version, weakref.ref(model)

        async def retire() -> None:
            while held() is not None:
                await asyncio.sleep(0.05)
            await self._drop(name, version)

        task = asyncio.get_running_loop().create_task(retire())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drop(self, name: str, version: int) -> None:
        for engine in self._engines:
            with contextlib.suppress(EngineLost):
                await engine.drop(name, version)


class LoadFailed(Refused):
    """A model could not be loaded.

    Attributes:
        reason: Why, in full; for the log and for who started the service.
    """

    def __init__(self, name: str, reason: str, *, kept: bool) -> None:
        """Says to clients no more than that it failed."""
        stays = "; the version before is still served" if kept else ""
        super().__init__(500, "load_failed", f"model {name} could not be loaded{stays}")
        self.reason = reason


def _samples(files: ModelFiles) -> list[Path]:
    try:
        return sample_files(files)
    except OSError:
        return []
