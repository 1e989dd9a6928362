# SPDX-License-Identifier: Apache-2.0
"""Soak test of the service: 10,000 mixed requests; memory, descriptors, threads.

    python bench/soak_service.py [--requests 10000] [--out bench/RESULTS_SOAK.md]

Both process layouts, one after the other. Exits with 1 where resident memory (front and engines)
grew by 10 MB or more, or anything was lost.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent


def soak(requests: int, *, in_process: bool) -> tuple[str, bool]:
    """One process layout: a row of the table, and whether all is well."""
    from cae_fast.demo import model_folder

    folder = model_folder("digits")
    samples = [path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))]
    command = [sys.executable, "-m", "cae_fast", "serve", str(folder / "model.safetensors")]
    command += [str(folder / "classifier.onnx"), "--bank", str(folder / "bank.csv")]
    command += ["--port", "0", "--log", "off", *(["--in-process"] if in_process else [])]
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
            statuses: dict[int, int] = {}
            start = time.perf_counter()
            for status in pool.map(ask, range(requests)):
                statuses[status] = statuses.get(status, 0) + 1
            seconds = time.perf_counter() - start
        after = state()
        grown = (after[0] - before[0]) / 2**20
        good = grown < 10 and set(statuses) <= {200, 400} and sum(statuses.values()) == requests
        row = (
            f"| cae-fast serve{' --in-process' if in_process else ''} | {requests} | "
            f"{statuses.get(200, 0)} | {statuses.get(400, 0)} | "
            f"{requests - statuses.get(200, 0) - statuses.get(400, 0)} | "
            f"{before[0] / 2**20:.1f} | {grown:+.1f} | {before[1]} to {after[1]} | "
            f"{before[2]} to {after[2]} | {seconds:.0f} |"
        )
        return row, good
    finally:
        server.terminate()
        server.wait(20)


def main() -> int:
    """Runs both and writes the page; the exit status."""
    from cae_fast.files import atomic_write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "RESULTS_SOAK.md")
    given = parser.parse_args()
    found = [soak(given.requests, in_process=alone) for alone in (False, True)]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.strip()
    text = [
        "# The service over many requests",
        "",
        f"Written by `python bench/soak_service.py --requests {given.requests}` at commit "
        f"{commit}, Python {platform.python_version()}, {os.cpu_count()} cores.",
        "",
        "Bundled digits, 8 clients, after 500 requests to warm up. In turn: binary map, JSON, "
        "NPZ, HTML and a stream of frames, another target, and an unknown class; every eleventh "
        "image is truncated. So a part must be refused with 400. Memory is resident, front and "
        "engine.",
        "",
        "| server | requests | answered 200 | refused 400 | anything else | MiB before "
        "| MiB more | descriptors | threads | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row for row, _ in found),
    ]
    with atomic_write(given.out) as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
