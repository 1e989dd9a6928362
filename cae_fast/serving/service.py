# SPDX-License-Identifier: Apache-2.0
"""The parts of a service put together: engines, models, batches, readiness."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cae_fast.serving.batcher import Batcher
from cae_fast.serving.catalog import Catalog, ServedModel
from cae_fast.serving.engine_process import RemoteEngine
from cae_fast.serving.engines import EngineHandle, LocalEngine
from cae_fast.serving.jobs import Answer, EngineLost, Job, Refused
from cae_fast.serving.metrics import Metrics
from cae_fast.serving.settings import Settings

log = logging.getLogger("cae_fast.serving")

_CANARY_TIMEOUT_S = 60.0


class Service:
    """Everything behind the routes.

    Attributes:
        settings: What it was told.
        metrics: What it counts.
        engines: That explain.
        batcher: In front of them.
        catalog: The models.
        pool: Threads that decode and encode images.
    """

    def __init__(self, settings: Settings) -> None:
        """Puts the parts together; nothing is started."""
        self.settings = settings
        self.metrics = Metrics()
        self.engines: list[EngineHandle] = []
        if settings.in_process:
            self.engines.append(LocalEngine(settings))
        else:
            for device in settings.devices or (None,):
                self.engines.append(RemoteEngine(settings, device, on_ready=self._wake))
        self.batcher = Batcher(self.engines, settings, self.metrics)
        self.catalog = Catalog(settings, self.engines)
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="images")
        self.canary_fault = ""
        self.started = False
        self._canary: asyncio.Task[None] | None = None
        self.metrics.watch(self.batcher, lambda: not self.not_ready())

    async def start(self) -> None:
        """Starts engines and loads models; each explains an image first.

        Raises:
            LoadFailed: A model cannot be loaded.
            EngineLost: An engine did not start.
        """
        await asyncio.gather(*(engine.start() for engine in self.engines))
        for name in self.catalog.names:
            await self.catalog.load(name)
        self.started = True
        if self.settings.canary_s:
            self._canary = asyncio.get_running_loop().create_task(self._canaries())
        log.info("ready", extra={"fields": {"models": self.catalog.names}})

    async def stop(self) -> None:
        """Answers what was accepted, then ends the engines."""
        await self.batcher.drain(self.settings.drain_s)
        if self._canary is not None:
            self._canary.cancel()
        for engine in self.engines:
            await engine.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def not_ready(self) -> str:
        """Why no work should be sent here, or an empty string."""
        if not self.started:
            return "starting"
        if self.batcher.draining:
            return "the service is ending"
        if not any(not engine.fault for engine in self.engines):
            return self.engines[0].fault
        if not self.catalog.complete:
            return "not every model is loaded"
        if self.batcher.waiting >= self.settings.queue_size:
            return "the queue is full"
        return self.canary_fault

    def not_live(self) -> str:
        """Why only a new process helps, or an empty string; engine processes mend themselves."""
        return self.engines[0].fault if self.settings.in_process and self.started else ""

    async def explain(
        self, model: ServedModel, jobs: list[Job], *, timeout_s: float, request: Any = None
    ) -> list[Answer | Refused]:
        """Answers of the jobs of one request.

        Args:
            model: That explains.
            jobs: At least one.
            timeout_s: Longest wait.
            request: A starlette `Request`; when its client leaves, work is taken back.

        Raises:
            Refused: The request as a whole.
        """
        disconnected = None if request is None else _disconnection(request)
        answers = await self.batcher.submit(
            model, jobs, timeout_s=timeout_s, disconnected=disconnected
        )
        for answer in answers:
            if isinstance(answer, Answer):
                self.metrics.stage("queue", answer.queue_s)
                self.metrics.stage("engine", answer.engine_s)
        return answers

    async def in_thread(self, call: Any, *arguments: Any, **named: Any) -> Any:
        """A function of a few milliseconds away from the event loop."""
        work = functools.partial(call, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def reload_all(self) -> None:
        """Loads every model again; those that fail stay as they were."""
        for name in self.catalog.names:
            with contextlib.suppress(Refused):
                await self.catalog.load(name)

    def _wake(self) -> None:
        self.batcher.wake()

    async def _canaries(self) -> None:
        """Explains an image when nothing else was explained for a while."""
        pause = self.settings.canary_s
        while True:
            await asyncio.sleep(pause / 4)
            idle = time.monotonic() - self.batcher.last_work
            if not self.canary_fault and (idle < pause or self.batcher.waiting):
                continue
            self.canary_fault = await self._canary_fault()
            self.batcher.last_work = time.monotonic()

    async def _canary_fault(self) -> str:
        for model in self.catalog.current:
            for engine in self.engines:
                if engine.fault:
                    continue
                try:
                    work = engine.canary(model.name, model.version)
                    await asyncio.wait_for(work, _CANARY_TIMEOUT_S)
                except EngineLost:
                    continue  # it is started again
                except Exception as error:
                    log.error("the canary of model %s failed: %s", model.name, error)
                    return f"model {model.name} fails on its canary"
        return ""


def _disconnection(request: Any) -> Any:
    """A function that returns when the client of a request is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone
