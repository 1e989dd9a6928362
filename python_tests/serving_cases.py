# SPDX-License-Identifier: Apache-2.0
"""A real server process on loopback, and images to send to it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from serving_faults import FAULTS, MARK

from cae_fast.demo import model_folder

ROOT = Path(__file__).resolve().parent.parent
DIGITS = model_folder("digits")
SAMPLES = sorted((DIGITS / "samples").glob("*.png"))


def digits_arguments(classifier: str | None = None) -> list[str]:
    """Arguments of `serve` for the bundled digits, or for another classifier of them."""
    chosen = classifier or str(DIGITS / "classifier.onnx")
    return [str(DIGITS / "model.safetensors"), chosen, "--bank", str(DIGITS / "bank.csv")]


def faulty_png(fault: str | None, sample: int = 0) -> bytes:
    """A digit whose first two pixels ask the classifier of `serving_faults` to misbehave."""
    pixels = np.asarray(Image.open(SAMPLES[sample]).convert("L")).copy()
    pixels[0, :2] = (FAULTS[fault], MARK) if fault else (0, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class Server:
    """A running service.

    Attributes:
        url: Its address.
        process: The front.
        log: What it wrote so far.
    """

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, prefix: str = ""
    ) -> None:
        """Starts `cae-fast serve` on a free port and waits until it is ready."""
        command = [sys.executable, "-m", "cae_fast", "serve", *arguments, "--port", "0"]
        if prefix:
            command = ["bash", "-c", f'{prefix}; exec "$@"', "bash", *command]
        path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests")])
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(env or {})},
            cwd=ROOT,
        )
        self.log = ""
        self.url = ""
        self._said = threading.Event()
        self._deaf = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._said.wait(60)
        self.seconds_to_ready = time.monotonic() - self.started
        if not self.url:
            self.process.kill()
            raise AssertionError(f"the server did not start: {self.log}")
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            rest = b""
            while not self._deaf.is_set():
                if not select.select([pipe], [], [], 0.05)[0]:
                    continue
                if not (read := os.read(pipe.fileno(), 65536)):
                    break
                *lines, rest = (rest + read).split(b"\n")
                for line in (raw.decode() for raw in lines):
                    self.log += f"{line}\n"
                    if found := re.match(r"serving at (http://\S+)", line):
                        self.url = found[1]
                        self._said.set()
        self._said.set()

    def close_log(self) -> None:
        """Closes the pipe that the service logs to."""
        self._deaf.set()
        self._reader.join()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def engines(self) -> list[psutil.Process]:
        """Its engine processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def explain(self, image: bytes | None = None, **options: Any) -> httpx.Response:
        """Posts one image as a form."""
        files = {"image": ("digit.png", image or SAMPLES[0].read_bytes(), "image/png")}
        return self.http.post("/explain", files=files, data=options)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's values with these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == f"cae_fast_{name}":
                said = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if said.items() >= labels.items():
                    total += float(found[3])
        return total

    def wait_ready(self, seconds: float = 30, *, ready: bool = True) -> float:
        """Waits until readiness is as wanted; how long that took."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if (self.http.get("/v2/health/ready").status_code == 200) is ready:
                return time.monotonic() - start
            time.sleep(0.02)
        raise AssertionError(f"not {'ready' if ready else 'unready'} in {seconds} s: {self.log}")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self._reader.join(5)


@contextlib.contextmanager
def serving(*arguments: str, **options: Any) -> Iterator[Server]:
    """A service for the length of a block; no process is left behind."""
    server = Server(*arguments, **options)
    children = server.engines
    try:
        yield server
    finally:
        children += server.engines if server.process.poll() is None else []
        server.stop()
        _, alive = psutil.wait_procs(children, timeout=5)
        for child in alive:
            child.kill()
        assert not alive, "an engine outlived its front"
