# SPDX-License-Identifier: Apache-2.0
"""What the batcher needs of an engine, and the engine that lives in the serving process."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from cae_fast.serving.core import EngineCore
from cae_fast.serving.jobs import EngineLost, Job, Options, Outcome
from cae_fast.serving.settings import ModelFiles, Settings


class EngineHandle(Protocol):
    """An engine as the front sees it; everything is called from the event loop.

    Attributes:
        device: What it was asked to run on.
        depth: Batches that may be given to it at a time.
        in_flight: Batches that it has; the batcher counts.
        restarts: Times it was started again.
    """

    device: str
    depth: int
    in_flight: int
    restarts: int

    @property
    def ready(self) -> bool:
        """Whether it takes batches."""

    @property
    def fault(self) -> str:
        """Why it is not alive, or an empty string."""

    def most(self, options: Options, image_bytes: int, num_classes: int) -> int:
        """The most jobs of a kind in one batch."""

    async def start(self) -> None:
        """Begins; models are loaded by :meth:`load`."""

    async def stop(self) -> None:
        """Ends; batches in flight are lost."""

    async def load(self, name: str, version: int, files: ModelFiles) -> dict[str, Any]:
        """As :meth:`cae_fast.serving.core.EngineCore.load`."""

    async def drop(self, name: str, version: int) -> None:
        """As :meth:`cae_fast.serving.core.EngineCore.drop`."""

    async def canary(self, name: str, version: int) -> None:
        """As :meth:`cae_fast.serving.core.EngineCore.canary`."""

    async def explain(self, name: str, version: int, jobs: list[Job]) -> Outcome:
        """As :meth:`cae_fast.serving.core.EngineCore.explain`.

        Raises:
            EngineLost: It ended before it answered.
        """


class LocalEngine:
    """The engine in a thread of the serving process: nothing is copied, nothing can be killed."""

    depth = 1
    restarts = 0

    def __init__(self, settings: Settings) -> None:
        """Without models yet."""
        self.device = settings.devices[0] if settings.devices else "default"
        self.in_flight = 0
        self._settings = settings
        self._core: EngineCore | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._busy_since: float | None = None
        self._canary_since: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes batches."""
        return self._core is not None and not self.fault

    @property
    def fault(self) -> str:
        """Why it is not alive, or an empty string."""
        for since in (self._busy_since, self._canary_since):
            if since is not None and time.monotonic() - since > self._settings.hang_s:
                return "a batch hangs"
        return ""

    def most(self, options: Options, image_bytes: int, num_classes: int) -> int:
        """The most jobs of a kind in one batch."""
        return self._settings.max_batch

    async def start(self) -> None:
        """Makes the core."""
        given = self._settings
        self._core = EngineCore(
            backend=given.backend,
            device=given.devices[0] if given.devices else None,
            threads=given.threads,
        )

    async def stop(self) -> None:
        """Lets go of the threads; one that hangs goes with the process."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def load(self, name: str, version: int, files: ModelFiles) -> dict[str, Any]:
        """Loads in a thread of its own, so that batches go on."""
        load = self._ready_core().load
        info: dict[str, Any] = await self._in(self._loader, load, name, version, files)
        return info

    async def drop(self, name: str, version: int) -> None:
        """Forgets a model."""
        self._ready_core().drop(name, version)

    async def canary(self, name: str, version: int) -> None:
        """Explains one image."""
        core = self._ready_core()

        def explain_one() -> None:
            # Begun where the worker is free: a batch at work keeps its own time.
            self._canary_since = time.monotonic()
            try:
                core.canary(name, version)
            finally:
                self._canary_since = None

        await self._in(self._worker, explain_one)

    async def explain(self, name: str, version: int, jobs: list[Job]) -> Outcome:
        """Explains a batch in the engine's thread."""
        self._busy_since = time.monotonic()
        try:
            outcome: Outcome = await self._in(
                self._worker, self._ready_core().explain, name, version, jobs
            )
            return outcome
        except RuntimeError:  # the pool is shut down
            raise EngineLost(started=False) from None
        finally:
            self._busy_since = None

    def _ready_core(self) -> EngineCore:
        if self._core is None:
            raise EngineLost(started=False)
        return self._core

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)
