# SPDX-License-Identifier: Apache-2.0
"""An ONNX classifier that is not trusted, in a process of its own.

A file that makes the runtime crash, hang or eat memory ends that process, not this one. The process
can write no files, dump no core and has little of the environment; it is not a sandbox against code
that breaks out of the runtime: for that, run the whole program in a container.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ClassifierError

_LENGTH = struct.Struct("<Q")
_LARGEST = 1 << 32  # bytes of a message
_MEMORY_BYTES = 8 << 30
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "LANG", "TMPDIR")
_PACKAGES = str(Path(__file__).resolve().parent.parent)
TIMEOUT_S = 120.0


class IsolatedNetwork:
    """Calls a network in a child process; a child that ended is replaced at the next call.

    Attributes:
        path: The `.onnx` file.
        shape: Of its input, texts where free.
        metadata: What cae_fast wrote into it, or None.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Starts the process and loads the file there.

        Args:
            path: The file, whose external data was checked.
            timeout_s: For loading, and for each call.

        Raises:
            ClassifierError: It cannot be loaded, or the process ended or took too long.
        """
        self.path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._child: subprocess.Popen[bytes] | None = None
        with self._lock:
            said = self._start()
        self.shape: list[Any] = said["shape"]
        self.metadata: str | None = said["metadata"]

    def __call__(self, images: Any) -> Any:
        """Images [N, C, H, W] -> what the network returns."""
        with self._lock:
            if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
                self._owner = os.getpid()
                self._start()
            deadline = time.monotonic() + self._timeout_s
            self._send(_packed(np.ascontiguousarray(images, dtype=np.float32)), deadline)
            kind, content = self._receive("classifying", deadline)
        if kind == b"E":
            raise ClassifierError(f"{self.path}: {content.decode('utf-8', 'replace')}")
        try:
            return np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError:
            raise ClassifierError(f"{self.path}: its process answers with no array") from None

    def close(self) -> None:
        """Ends the process."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def __del__(self) -> None:
        """Ends the process."""
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def _start(self) -> dict[str, Any]:
        self.close()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # The same packages, and nothing from the working directory.
        environment["PYTHONPATH"] = os.pathsep.join([_PACKAGES, *filter(None, sys.path[1:])])
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "cae_fast.isolated_onnx", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)  # see _send
        kind, content = self._receive("loading it", time.monotonic() + self._timeout_s)
        if kind == b"E":
            self.close()
            raise ClassifierError(f"{self.path}: {content.decode('utf-8', 'replace')}")
        said: dict[str, Any] = json.loads(content)
        return said

    def _send(self, message: bytes, deadline: float) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        descriptor = self._child.stdin.fileno()
        rest = memoryview(_LENGTH.pack(len(message)) + message)
        try:
            while rest:
                _, ready, _ = select.select(
                    [], [descriptor], [], max(0.0, deadline - time.monotonic())
                )
                if not ready:
                    raise self._late("classifying")
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(descriptor, rest) :]
        except OSError:
            raise self._ended("classifying") from None

    def _receive(self, doing: str, deadline: float) -> tuple[bytes, bytes]:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline, doing))
        if not 1 <= length <= _LARGEST:
            raise self._ended(doing)
        message = self._read(length, deadline, doing)
        return message[:1], message[1:]

    def _read(self, count: int, deadline: float, doing: str) -> bytes:
        assert self._child is not None
        assert self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        parts = bytearray()
        while len(parts) < count:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._late(doing)
            part = os.read(descriptor, min(count - len(parts), 1 << 20))
            if not part:
                raise self._ended(doing)
            parts += part
        return bytes(parts)

    def _late(self, doing: str) -> ClassifierError:
        self.close()
        return ClassifierError(
            f"{self.path}: its process took more than {self._timeout_s:g} s {doing}: ended"
        )

    def _ended(self, doing: str) -> ClassifierError:
        child = self._child
        code = child.wait() if child is not None else None
        self.close()
        how = f"with code {code}"
        if code is not None and code < 0:
            how = f"by {signal.Signals(-code).name}"
        return ClassifierError(f"{self.path}: its process ended {how} while {doing}")


def _packed(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _serve(path: Path) -> None:
    """The child: loads the file, then answers arrays with arrays until its input ends."""
    import resource

    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    # Whatever libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(kind: bytes, content: bytes) -> None:
        answers.write(_LENGTH.pack(1 + len(content)) + kind + content)
        answers.flush()

    from .classifier_files import METADATA_KEY, open_onnx

    try:
        network = open_onnx(path)
    except Exception as error:
        answer(b"E", _line(error).removeprefix(f"{path}: ").encode())
        return
    metadata = network.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    answer(b"A", json.dumps({"shape": network.shape, "metadata": metadata}).encode())
    while header := sys.stdin.buffer.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(header)
        images = np.load(io.BytesIO(sys.stdin.buffer.read(length)), allow_pickle=False)
        try:
            answer(b"A", _packed(np.asarray(network(images))))
        except Exception as error:
            answer(b"E", _line(error).encode())


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
