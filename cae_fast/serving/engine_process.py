# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of its own, as the front sees it: started, watched, started again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from cae_fast.errors import CAEError
from cae_fast.serving import packet
from cae_fast.serving.engine_main import HEAD, KEEP_BYTES
from cae_fast.serving.jobs import EngineLost, Job, Options, Outcome, stacked
from cae_fast.serving.settings import ModelFiles, Settings

log = logging.getLogger("cae_fast.serving")

_WATCH_S = 0.2
_START_S = 60.0
_LOAD_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LARGEST_MESSAGE = 64 * 1024
#: Beside the pictures: logits along the path, numbers, JSON.
_SLACK_BYTES = 64 * 1024
#: Slots for batches; the one behind them is for loading.
_BATCH_SLOTS = 2


class RemoteEngine:
    """An engine process over shared memory."""

    def __init__(
        self,
        settings: Settings,
        device: str | None,
        *,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            settings: Of the service.
            device: As in `cf.Explainer`.
            on_ready: Called when the engine takes batches again.
        """
        self.device = device or "default"
        self.depth = _BATCH_SLOTS
        self.in_flight = 0
        self.restarts = 0
        self.on_ready = on_ready
        self._settings, self._device = settings, device
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._head: packet.Segment | None = None
        self._slots: list[packet.Segment] = []
        self._free: list[int] = []
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._models: dict[tuple[str, int], ModelFiles] = {}
        self._control_lock = asyncio.Lock()
        self._hello: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = False
        self._fault = "not started"
        self._pause_s = _FIRST_PAUSE_S
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Whether it takes batches."""
        return self._ready and bool(self._free)

    @property
    def fault(self) -> str:
        """Why it is not alive, or an empty string."""
        return self._fault

    @property
    def pid(self) -> int | None:
        """Of the process, None where there is none."""
        return None if self._process is None else self._process.pid

    def most(self, options: Options, image_bytes: int, num_classes: int) -> int:
        """The most jobs of a kind in one batch."""
        pictures = image_bytes * (5 + options.frames / 4)
        each = pictures + num_classes * 4 * options.frames + _SLACK_BYTES
        return max(1, min(self._settings.max_batch, int(self._settings.slot_mb * 2**20 / each)))

    async def start(self) -> None:
        """Starts the process and waits until it speaks.

        Raises:
            EngineLost: It ended first.
        """
        await self._launch()
        self._ready, self._fault = True, ""
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Ends the process; batches in flight are lost."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        self._bury("stopped", kill=True)

    async def load(self, name: str, version: int, files: ModelFiles) -> dict[str, Any]:
        """Loads a model; it will be loaded again whenever the process is started again."""
        info: dict[str, Any] = await self._control("load", name, version, files)
        self._models[name, version] = files
        return info

    async def drop(self, name: str, version: int) -> None:
        """Forgets a model."""
        self._models.pop((name, version), None)
        with contextlib.suppress(EngineLost):
            await self._control("drop", name, version)

    async def canary(self, name: str, version: int) -> None:
        """Explains one image."""
        await self._control("canary", name, version)

    async def explain(self, name: str, version: int, jobs: list[Job]) -> Outcome:
        """Explains a batch in the process."""
        if not self.ready:
            raise EngineLost(started=False)
        index = self._free.pop()
        slot = self._slots[index]
        number = next(self._numbers)
        asked = {
            "name": name,
            "version": version,
            "options": dataclasses.asdict(jobs[0].options),
            "images": stacked(jobs),
            "targets": [job.target for job in jobs],
            "rows": [job.rows for job in jobs],
            "second_paths": [job.second_path for job in jobs],
        }
        try:
            at = packet.write(slot.view, asked)
        except packet.PacketTooLarge:
            self._free.append(index)
            large = (413, "too_large", "the image does not fit into the memory of a batch")
            return Outcome(failures={row: large for row in range(len(jobs))})
        said = await self._ask({"op": "explain", "slot": index, "at": at, "id": number})
        outcome = Outcome.from_tree(said["result"])
        if index < len(self._slots) and self._slots[index] is slot:  # not of a process that ended
            if said["at"][1] > 2 * KEEP_BYTES:
                slot.forget(KEEP_BYTES)
            self._free.append(index)
        return outcome

    async def _control(
        self, operation: str, name: str, version: int, files: ModelFiles | None = None
    ) -> Any:
        """One of the operations on a model.

        Raises:
            CAEError: The engine refuses; its words.
            EngineLost: The process ended.
        """
        async with self._control_lock:
            message = {
                "op": operation,
                "slot": _BATCH_SLOTS,
                "id": next(self._numbers),
                "name": name,
                "version": version,
                "files": None if files is None else dataclasses.asdict(files),
            }
            said = await asyncio.wait_for(self._ask(message), _LOAD_S)
            if "error" in said:
                raise CAEError(said["error"])
            return said["result"]

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends a message and waits for its answer."""
        if self._channel is None:
            raise EngineLost(started=False)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[message["id"]] = answer
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            self._pending.pop(message["id"], None)
            self._bury("cannot be spoken to", kill=True)
            raise EngineLost(started=False) from None
        return await answer

    async def _launch(self) -> None:
        """A process with its memory and its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._start_process(theirs)
        except BaseException:
            ours.close()
            self._forget_memory()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._channel = ours
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        loop.add_reader(ours.fileno(), self._receive, ours)
        try:
            await asyncio.wait_for(asyncio.shield(self._hello), _START_S)
        except TimeoutError:
            self._bury("did not start", kill=True)
            raise EngineLost(started=False) from None

    def _start_process(self, theirs: socket.socket) -> None:
        """The process and its memory.

        Raises:
            OSError: The system has no more descriptors, memory or processes.
        """
        slot_bytes = self._settings.slot_mb * 2**20
        self._head = packet.Segment(4096)
        for _ in range(_BATCH_SLOTS + 1):
            self._slots.append(packet.Segment(slot_bytes))
        self._free = list(range(_BATCH_SLOTS))
        HEAD.pack_into(self._head.view, 0, time.monotonic(), -1, 0.0)
        descriptors = [self._head.descriptor, *(slot.descriptor for slot in self._slots)]
        given = {
            "socket": theirs.fileno(),
            "head": descriptors[0],
            "slots": descriptors[1:],
            "slot_bytes": slot_bytes,
            "backend": self._settings.backend,
            "device": self._device,
            "threads": self._settings.threads,
            "log": self._settings.log,
            "parent": os.getpid(),
        }
        command = [sys.executable, "-m", "cae_fast.serving.engine_main", json.dumps(given)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *descriptors),
        )

    def _forget_memory(self) -> None:
        """Lets go of the memory shared with a process."""
        for segment in (self._head, *self._slots):
            if segment is not None:
                segment.close()
        self._head, self._slots, self._free = None, [], []

    def _receive(self, channel: socket.socket) -> None:
        """Takes what the process says; nothing is said when it ended."""
        while channel is self._channel:
            try:
                message = channel.recv(_LARGEST_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._bury("ended")
                return
            said = json.loads(message)
            if "hello" in said:
                if self._hello is not None and not self._hello.done():
                    self._hello.set_result(None)
                continue
            answer = self._pending.pop(said["id"], None)
            if "at" in said:
                # Read now: the next message may be that the process ended, and its memory goes.
                slot = self._slots[said["slot"]]
                said["result"] = packet.read(slot.view, *said["at"])
                if said["slot"] == _BATCH_SLOTS:
                    slot.forget(0)
            if answer is not None and not answer.done():
                answer.set_result(said)

    def _bury(self, why: str, *, kill: bool = False) -> None:
        """The process is gone, or is made to go: what it had is lost, and it is started again."""
        process, channel = self._process, self._channel
        if process is None or channel is None:
            return
        self._ready, self._fault = False, f"the engine {why}"
        asyncio.get_running_loop().remove_reader(channel.fileno())
        channel.close()
        self._channel = self._process = None
        if kill:
            process.kill()
        at_work = -1
        if self._head is not None:
            at_work = HEAD.unpack_from(self._head.view, 0)[1]
        for number, answer in self._pending.items():
            if not answer.done():
                answer.set_exception(EngineLost(started=number == at_work))
        self._pending.clear()
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(EngineLost(started=False))
        self._forget_memory()
        if self._stopping:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            return
        self._spawn(self._again(process, why))

    async def _again(self, ended: subprocess.Popen[bytes], why: str) -> None:
        """Reaps the process and starts another, later each time that does not last."""
        while ended.poll() is None:
            await asyncio.sleep(0.01)
        log.error("the engine %s (exit status %s); starting another", why, ended.returncode)
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.restarts += 1
        try:
            await self._launch()
            for (name, version), files in list(self._models.items()):
                await self._control("load", name, version, files)
        except EngineLost:
            return  # buried, and on its way again
        except Exception as error:
            log.error("the engine cannot be started again: %s", error)
            if self._process is None:  # not even a process: nothing to bury
                self._fault = "the engine cannot be started"
                self._spawn(self._again(ended, "could not be started"))
            else:
                self._bury("cannot load its models again", kill=True)
            return
        self._ready, self._fault = True, ""
        self.on_ready()

    async def _watch(self) -> None:
        """Ends a process that gives no sign of life, or that works too long on one batch."""
        calm_since = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._process is None or self._head is None:
                calm_since = time.monotonic()
                continue
            now = time.monotonic()
            if now - calm_since > 10 * self._pause_s:
                self._pause_s = _FIRST_PAUSE_S
            beat, _, begun = HEAD.unpack_from(self._head.view, 0)
            if begun > 0 and now - begun > self._settings.hang_s:
                self._bury(f"worked on one batch for {now - begun:.1f} s", kill=True)
            elif now - beat > self._settings.heartbeat_s:
                self._bury(f"gave no sign of life for {now - beat:.1f} s", kill=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
