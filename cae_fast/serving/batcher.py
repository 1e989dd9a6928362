# SPDX-License-Identifier: Apache-2.0
"""Requests wait here, are joined into batches, and get their answers: each exactly one.

Everything runs on the event loop. An idle engine gets what waits at once; while others are on their
way, it is held back for at most the latency budget. While an engine works, company gathers by
itself. A second batch is given to a busy engine only when it is full, so that it need not wait for
the front between two batches.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cae_fast.serving.engines import EngineHandle
from cae_fast.serving.jobs import Answer, EngineLost, Job, Options, Outcome, Refused
from cae_fast.serving.settings import Settings

#: Times that a job is given to an engine.
_MOST_ATTEMPTS = 2
#: About how many times as long as with the plain map an image takes: batches are smaller.
_COST = {"edit": 6, "weighted": 3, "evidence": 5, "mean-k": 6}


class ModelVersion(Protocol):
    """What the batcher needs to know of a model."""

    @property
    def name(self) -> str:
        """In addresses."""

    @property
    def version(self) -> int:
        """Counts reloads."""

    @property
    def image_bytes(self) -> int:
        """Of one image as float32."""

    @property
    def num_classes(self) -> int:
        """K."""


class Observer(Protocol):
    """What is told about batches."""

    def batch_done(self, model: str, size: int, outcome: Outcome) -> None:
        """A batch was answered."""

    def requeued(self, count: int) -> None:
        """Jobs go back into the queue because their engine ended."""


@dataclass(eq=False)
class _Waiting:
    """A job and who waits for it."""

    job: Job
    model: ModelVersion
    future: asyncio.Future[Answer | Refused]
    arrived: float
    attempts: int = 0
    queued_s: float = 0.0

    @property
    def key(self) -> tuple[str, int, Options]:
        """Jobs with equal keys can be explained together."""
        return self.model.name, self.model.version, self.job.options


@dataclass
class Batcher:
    """The queue in front of the engines.

    Attributes:
        engines: That work.
        settings: Sizes and times.
        observer: Is told of batches.
        arriving: Requests that the front is still reading.
        draining: Nothing new is taken.
        last_work: When the last batch ended, on the monotonic clock.
    """

    engines: Sequence[EngineHandle]
    settings: Settings
    observer: Observer
    arriving: int = 0
    draining: bool = False
    last_work: float = field(default_factory=time.monotonic)
    _queue: deque[_Waiting] = field(default_factory=deque)
    _timer: asyncio.TimerHandle | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _company: int = 1
    _rate: float = 0.05

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Batches in engines."""
        return len(self._tasks)

    def admit(self) -> None:
        """Refuses a request that has just come, before its body is read.

        One that was admitted is answered to its end, streamed parts included, also when the
        service begins to end meanwhile.

        Raises:
            Refused: 503: the queue is full, or the service is ending.
        """
        if self.draining:
            raise Refused(503, "draining", "the service is ending", retry_after_s=1)
        self._check_room(1)

    def _check_room(self, count: int) -> None:
        """Refuses what would not find a place in the queue."""
        if len(self._queue) + count > self.settings.queue_size:
            raise Refused(
                503, "queue_full", "too many requests are waiting", retry_after_s=self._patience()
            )

    async def submit(
        self,
        model: ModelVersion,
        jobs: Sequence[Job],
        *,
        timeout_s: float,
        disconnected: Callable[[], Awaitable[Any]] | None = None,
    ) -> list[Answer | Refused]:
        """Waits for the answers of the jobs of one request.

        Args:
            model: That explains them.
            jobs: At least one.
            timeout_s: Longest wait.
            disconnected: Returns when the client is gone; then what has not begun is taken back.

        Returns:
            One for each job; a refusal concerns that job alone.

        Raises:
            Refused: 503: no room; 504: too late; 499: the client is gone.
        """
        self._check_room(len(jobs))
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [_Waiting(job, model, loop.create_future(), now) for job in jobs]
        self._queue.extend(entries)
        self._pump()
        gone = None if disconnected is None else asyncio.ensure_future(disconnected())
        answers: asyncio.Future[Any] = (
            entries[0].future
            if len(entries) == 1
            else asyncio.gather(*(entry.future for entry in entries))
        )
        try:
            await asyncio.wait(
                {answers} if gone is None else {answers, gone},
                timeout=timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answers.done():
                return [answers.result()] if len(entries) == 1 else list(answers.result())
            if gone is not None and gone.done():
                raise Refused(499, "disconnected", "the client is gone")
            raise Refused(504, "deadline", f"no answer within {timeout_s:g} s")
        finally:
            if gone is not None:
                gone.cancel()
            answers.cancel()
            self._take_back(entries)

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new and waits for what was taken."""
        self.draining = True
        end = time.monotonic() + timeout_s
        while (self._queue or self._tasks) and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def wake(self) -> None:
        """An engine has become ready."""
        self._pump()

    def _take_back(self, entries: Sequence[_Waiting]) -> None:
        """Removes entries nobody waits for any more."""
        left = [entry for entry in entries if not entry.future.done() or entry.future.cancelled()]
        for entry in left:
            entry.future.cancel()
            if entry in self._queue:
                self._queue.remove(entry)

    def _pump(self) -> None:
        """Gives engines what they can take."""
        for engine in self.engines:
            while self._queue and engine.ready and engine.in_flight < engine.depth:
                if not self._start(engine):
                    break

    def _start(self, engine: EngineHandle) -> bool:
        """Gives an engine a batch; false where it is better to wait."""
        first = self._queue[0]
        most = self._most(engine, first)
        chosen: list[_Waiting] = []
        for entry in self._queue:
            if entry.key == first.key and entry.attempts == first.attempts:
                chosen.append(entry)
                if len(chosen) == most:
                    break
        if len(chosen) < most:
            if engine.in_flight:
                return False
            expected = self.arriving > 0 or self._company > 1
            waited = time.monotonic() - first.arrived
            left = self.settings.batch_wait_ms / 1000 - waited
            if expected and left > 0 and first.attempts == 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(left, self._after_wait)
                return False
        members = set(map(id, chosen))
        if len(members) == len(self._queue):
            self._queue.clear()
        else:
            self._queue = deque(entry for entry in self._queue if id(entry) not in members)
        task = asyncio.get_running_loop().create_task(self._run(engine, chosen))
        engine.in_flight += 1  # the task itself begins on the next turn of the loop
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return True

    def _most(self, engine: EngineHandle, first: _Waiting) -> int:
        """The most jobs of a batch; one that may have ended an engine goes alone."""
        if first.attempts:
            return 1
        model, options = first.model, first.job.options
        most = engine.most(options, model.image_bytes, model.num_classes)
        return max(1, most // _COST.get(options.saliency, 1))

    def _after_wait(self) -> None:
        self._timer = None
        self._company = 1
        self._pump()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # the loop's handler logs it

    async def _run(self, engine: EngineHandle, batch: list[_Waiting]) -> None:
        """One batch: to the engine and back to those who wait."""
        begun = time.monotonic()
        model = batch[0].model
        for entry in batch:
            entry.queued_s = begun - entry.arrived
        try:
            outcome = await engine.explain(
                model.name, model.version, [entry.job for entry in batch]
            )
        except EngineLost as lost:
            self._again(batch, lost.started)
            return
        except Exception:
            for entry in batch:
                _settle(entry, Refused(500, "internal", "the engine could not be asked"))
            raise
        finally:
            engine.in_flight -= 1
            self.last_work = time.monotonic()
        self._company = len(batch)
        self._rate += 0.1 * ((self.last_work - begun) / len(batch) - self._rate)
        self.observer.batch_done(model.name, len(batch), outcome)
        for entry, answer in zip(batch, outcome.answers(len(batch)), strict=True):
            if isinstance(answer, Answer):
                answer.queue_s = entry.queued_s
            _settle(entry, answer)

    def _again(self, batch: list[_Waiting], started: bool) -> None:
        """Back to the head of the queue, unless that has been tried."""
        again: list[_Waiting] = []
        for entry in batch:
            entry.attempts += started
            if entry.attempts >= _MOST_ATTEMPTS:
                said = "the engine ended while explaining this"
                _settle(entry, Refused(503, "engine_lost", said, retry_after_s=1))
            elif not entry.future.done():
                again.append(entry)
        self.observer.requeued(len(again))
        self._queue.extendleft(reversed(again))

    def _patience(self) -> float:
        """Seconds until the queue will have moved on."""
        engines = max(1, sum(engine.ready for engine in self.engines))
        return max(1.0, min(60.0, len(self._queue) * self._rate / engines))


def _settle(entry: _Waiting, answer: Answer | Refused) -> None:
    """Gives an answer to whoever waits, once."""
    if not entry.future.done():
        entry.future.set_result(answer)
