# SPDX-License-Identifier: Apache-2.0
"""An engine process: takes batches from shared memory, puts answers there.

Started by `cae_fast.serving.engine_process`, never by hand. It ends when the front closes the
socket or ends itself. Messages are JSON, one a datagram:

==================================================  ===============================================
from the front                                      answer
==================================================  ===============================================
`{"op": "explain", "slot", "at": [a, b], "id"}`     `{"id", "slot", "at"}`
`{"op": "load" | "canary" | "drop", "slot", ...}`   the same, or `{"id", "slot", "error"}`
==================================================  ===============================================
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

from cae_fast.errors import BackendUnavailable, MissingExtra, OutOfMemory
from cae_fast.serving import packet
from cae_fast.serving.core import EngineCore
from cae_fast.serving.jobs import Job, Options, Outcome
from cae_fast.serving.logs import set_up_logging
from cae_fast.serving.settings import ModelFiles

#: Head of the first segment: time of the last beat, number of the batch at work, when it began.
HEAD = struct.Struct("=dqd")
#: Bytes of a slot that are kept when it is empty again.
KEEP_BYTES = 16 * 2**20
BEAT_S = 0.2
_LARGEST_MESSAGE = 64 * 1024
_PR_SET_PDEATHSIG = 1


class EngineProcess:
    """The life of an engine process."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Maps what the front handed over.

        Args:
            given: "socket", "head" and "slots" (descriptors), "slot_bytes", and the arguments of
                :class:`cae_fast.serving.core.EngineCore`.
        """
        self.channel = socket.socket(fileno=given["socket"])
        self.head = packet.Segment(4096, given["head"])
        self.slots = [packet.Segment(given["slot_bytes"], fd) for fd in given["slots"]]
        self.core = EngineCore(
            backend=given["backend"], device=given["device"], threads=given["threads"]
        )
        self._batch, self._begun = -1, 0.0
        self._sending = threading.Lock()

    def run(self) -> None:
        """Works until the front is gone."""
        threading.Thread(target=self._beat, daemon=True).start()
        self._send({"hello": os.getpid()})
        while message := self.channel.recv(_LARGEST_MESSAGE):
            said = json.loads(message)
            if said["op"] == "explain":
                self._explain(said)
            elif said["op"] == "load":
                threading.Thread(target=self._control, args=(said,), daemon=True).start()
            else:
                self._control(said)

    def _beat(self) -> None:
        while True:
            self._sign()
            time.sleep(BEAT_S)

    def _sign(self) -> None:
        HEAD.pack_into(self.head.view, 0, time.monotonic(), self._batch, self._begun)

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self.channel.send(json.dumps(message).encode())

    def _explain(self, said: dict[str, Any]) -> None:
        slot = self.slots[said["slot"]]
        self._batch, self._begun = said["id"], time.monotonic()
        self._sign()
        try:
            asked = packet.read(slot.view, *said["at"])
            options = Options(**asked["options"])
            jobs = [
                Job(image, target, options, tuple(rows), tuple(map(tuple, second)))
                for image, target, rows, second in zip(
                    *(asked[name] for name in ("images", "targets", "rows", "second_paths")),
                    strict=True,
                )
            ]
            outcome = self.core.explain(asked["name"], asked["version"], jobs)
            try:
                at = packet.write(slot.view, outcome.tree())
            except packet.PacketTooLarge:
                large = (413, "too_large", "the answer does not fit; ask for fewer frames")
                outcome = Outcome(failures={row: large for row in range(len(jobs))})
                at = packet.write(slot.view, outcome.tree())
        finally:
            self._batch, self._begun = -1, 0.0
            self._sign()
        self._send({"id": said["id"], "slot": said["slot"], "at": at})

    def _control(self, said: dict[str, Any]) -> None:
        """Loads, drops or tries a model."""
        slot = self.slots[said["slot"]]
        answer = {"id": said["id"], "slot": said["slot"]}
        model = said["name"], said["version"]
        try:
            result: Any = None
            if said["op"] == "load":
                result = self.core.load(*model, ModelFiles(**said["files"]))
            elif said["op"] == "drop":
                self.core.drop(*model)
            else:
                self._begun = time.monotonic()
                self._sign()
                try:
                    self.core.canary(*model)
                finally:
                    self._begun = 0.0
                    self._sign()
            answer["at"] = packet.write(slot.view, result)
        except (ValueError, OSError, BackendUnavailable, MissingExtra, OutOfMemory) as error:
            answer["error"] = " ".join(str(error).split())[:2000]
        except Exception as error:
            logging.getLogger("cae_fast.serving").error("loading failed", exc_info=error)
            answer["error"] = f"{type(error).__name__} (see the log)"
        self._send(answer)


def main() -> None:
    """Runs an engine process as the front's child."""
    given = json.loads(sys.argv[1])
    # The front ends this process; a terminal's interrupt is for the front.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Dies with the front, even in the middle of a batch that hangs.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != given["parent"]:
        return
    set_up_logging(given["log"])
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        EngineProcess(given).run()
    # Threads of libraries may not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main()
