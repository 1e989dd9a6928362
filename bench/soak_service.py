# SPDX-License-Identifier: Apache-2.0
"""Soak test of the service: 10,000 mixed requests; memory, descriptors, threads.

    python bench/soak_service.py [--requests 10000] [--in-process]

Exits with 1 where resident memory (front and engines) grew by 10 MB or more, or anything was lost.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Runs the soak; the exit status."""
    from cae_fast.demo import model_folder

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--in-process", action="store_true")
    given = parser.parse_args()
    folder = model_folder("digits")
    samples = [path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))]
    command = [sys.executable, "-m", "cae_fast", "serve", str(folder / "model.safetensors")]
    command += [str(folder / "classifier.onnx"), "--bank", str(folder / "bank.csv")]
    command += ["--port", "0", "--log", "off", *(["--in-process"] if given.in_process else [])]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = re.match(r"serving at (\S+)", server.stderr.readline())
        assert found is not None
        front = psutil.Process(server.pid)
        family = [front, *front.children(recursive=True)]
        local = threading.local()
        kinds = ("raw", "json", "npz", "html", "ndjson")
        options = [{"format": kind, "frames": "4"} for kind in kinds[1:]]
        options += [{"format": "raw"}, {"target": "dog"}, {"format": "raw", "target": "8"}]

        def ask(i: int) -> int:
            http = getattr(local, "http", None)
            if http is None:
                http = local.http = httpx.Client(base_url=found[1], timeout=120)
            params = options[i % len(options)]
            image = samples[i % 12] if i % 11 else samples[0][:100]
            octets = {"content-type": "application/octet-stream"}
            return int(
                http.post("/explain", params=params, content=image, headers=octets).status_code
            )

        def state() -> tuple[int, int, int]:
            return (
                sum(process.memory_info().rss for process in family),
                sum(process.num_fds() for process in family),
                sum(process.num_threads() for process in family),
            )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(500)))
            before = state()
            print(f"after 500: {before[0] / 2**20:.1f} MiB, {before[1]} fds, {before[2]} threads")
            statuses: dict[int, int] = {}
            for status in pool.map(ask, range(given.requests)):
                statuses[status] = statuses.get(status, 0) + 1
        after = state()
        grown = (after[0] - before[0]) / 2**20
        print(f"after {given.requests} more: {grown:+.1f} MiB, {after[1:]}, answers {statuses}")
        good = (
            grown < 10 and set(statuses) <= {200, 400} and sum(statuses.values()) == given.requests
        )
        return 0 if good else 1
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    sys.exit(main())
