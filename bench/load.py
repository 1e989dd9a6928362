# SPDX-License-Identifier: Apache-2.0
"""Load test of the service: latency and throughput at 1, 8 and 64 clients.

The bundled digits, PNG in and the binary map out (no frames), through `cae-fast serve` in both
process layouts, beside a naive FastAPI handler around `Explainer.explain` and the same in LitServe.
The engine's own time and batch throughput are measured alone, before and after. Clients are
asyncio tasks of this process; its CPU time is reported.

    python bench/load.py [--seconds 5] [--out bench/RESULTS_SERVICE.md]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 8, 64)

NAIVE = """
import sys
import cae_fast as cf
from cae_fast.demo import model_folder
from fastapi import FastAPI, Request, Response
import uvicorn
f = model_folder("digits")
explainer = cf.Explainer(cf.CAE.load(f / "model.safetensors"),
    cf.Classifier.load(f / "classifier.onnx"), bank=cf.CodeBank.load(f / "bank.csv"))
app = FastAPI()
def work(data):
    images = cf.load_images(data, size=32, channels=1)
    return explainer.explain(images, k=10).saliency[0].tobytes()
@app.post("/explain")
async def explain(request: Request):
    import asyncio
    return Response(await asyncio.to_thread(work, await request.body()))
uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""
LITSERVE = """
import base64, sys
import litserve as ls
class Api(ls.LitAPI):
    def setup(self, device):
        import cae_fast as cf
        from cae_fast.demo import model_folder
        f = model_folder("digits")
        self.cf = cf
        self.explainer = cf.Explainer(cf.CAE.load(f / "model.safetensors"),
            cf.Classifier.load(f / "classifier.onnx"), bank=cf.CodeBank.load(f / "bank.csv"))
    def decode_request(self, request):
        data = base64.b64decode(request["image"])
        return self.cf.load_images(data, size=32, channels=1)[0]
    def batch(self, inputs):
        import numpy as np
        return np.stack(inputs) if isinstance(inputs, list) else inputs
    def predict(self, x):
        x = x if x.ndim == 4 else x[None]
        return list(self.explainer.explain(x, k=10).saliency)
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        output = output[0] if isinstance(output, list) else output
        return {"saliency": base64.b64encode(output.tobytes()).decode()}
if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.002, api_path="/explain")
    server = ls.LitServer(api, accelerator="cpu", track_requests=False)
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
"""


def engine_alone() -> tuple[float, float]:
    """Median seconds of one explanation, and explanations per second in batches of 32."""
    code = """
import time, numpy as np, cae_fast as cf
from cae_fast.demo import model_folder
f = model_folder("digits")
e = cf.Explainer(cf.CAE.load(f / "model.safetensors"), cf.Classifier.load(f / "classifier.onnx"),
    bank=cf.CodeBank.load(f / "bank.csv"))
x = cf.load_images(sorted((f / "samples").glob("*.png")), size=32, channels=1)
many = np.concatenate([x] * 3)[:32]
def median(images, seconds):
    e.explain(images, k=10)
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        for i in range(12):
            part = images if len(images) > 1 else x[i:i + 1]
            start = time.perf_counter(); e.explain(part, k=10)
            times.append(time.perf_counter() - start)
    return float(np.median(times))
print(median(x[:1], 2), 32 / median(many, 3))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    single, rate = map(float, done.stdout.split())
    return single, rate


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int, body: bytes) -> Iterator[float]:
    """A server as long as the block; yields seconds until it explained."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            with contextlib.suppress(OSError, AssertionError, IndexError, EOFError):
                asyncio.run(run_clients(port, 1, 0.01, body))
                break
            if process.poll() is not None or time.perf_counter() - start > 60:
                raise RuntimeError(f"{command} does not answer")
            time.sleep(0.05)
        yield time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def client(port: int, until: float, body: bytes, times: list[float]) -> None:
    """One connection that asks again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        start = time.perf_counter()
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        now = time.perf_counter()
        times.append(now - start)
        if now > until:
            break
    writer.close()


async def run_clients(port: int, count: int, seconds: float, body: bytes) -> list[float]:
    """Seconds of every request of `count` clients."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, until, body, times) for _ in range(count)))
    return times


def request_bytes(content: bytes, kind: str, query: str = "") -> bytes:
    """A request as it goes over the wire."""
    head = f"POST /explain{query} HTTP/1.1\r\nhost: bench\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def main() -> None:
    """Measures and writes the page."""
    import base64
    import json
    import tempfile

    from cae_fast.demo import model_folder

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "RESULTS_SERVICE.md")
    parser.add_argument("--note", default="", help="what disturbed the machine")
    given = parser.parse_args()
    folder = model_folder("digits")
    png = (folder / "samples" / "00_3_as_8.png").read_bytes()
    plain = request_bytes(png, "image/png")
    ours = request_bytes(png, "image/png", "?format=raw")
    lit = request_bytes(
        json.dumps({"image": base64.b64encode(png).decode()}).encode(), "application/json"
    )
    files = [str(folder / "model.safetensors"), str(folder / "classifier.onnx")]
    serve = [sys.executable, "-m", "cae_fast", "serve", *files, "--bank", str(folder / "bank.csv")]
    load_before = os.getloadavg()[0]
    single, rate = engine_alone()
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in (("naive.py", NAIVE), ("lit.py", LITSERVE)):
            (Path(scratch) / name).write_text(text)
        servers = (
            ("cae-fast serve", [*serve, "--log", "off", "--port"], ours),
            (
                "cae-fast serve --in-process",
                [*serve, "--log", "off", "--in-process", "--port"],
                ours,
            ),
            ("naive FastAPI", [sys.executable, f"{scratch}/naive.py"], plain),
            ("LitServe", [sys.executable, f"{scratch}/lit.py"], lit),
        )
        for name, command, body in servers:
            port = free_port()
            with running([*command, str(port)], port, body) as ready:
                asyncio.run(run_clients(port, 8, 1.0, body))
                for count in CLIENTS:
                    cpu, start = time.process_time(), time.perf_counter()
                    times = asyncio.run(run_clients(port, count, given.seconds, body))
                    spent = time.perf_counter() - start
                    cpu = time.process_time() - cpu
                    p50, p95, p99 = (1000 * float(np.percentile(times, q)) for q in (50, 95, 99))
                    served = len(times) / spent
                    rows.append(
                        f"| {name} | {count} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {served:.0f} | "
                        f"{served / rate:.0%} | {p50 - 1000 * single:+.1f} | {cpu / spent:.0%} | "
                        f"{ready:.1f} |"
                    )
                    print(rows[-1], flush=True)
    single_after, rate_after = engine_alone()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.strip()
    text = [
        "# The service under load",
        "",
        f"Written by `python bench/load.py --seconds {given.seconds:g}` at commit {commit}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load average {load_before:.1f} "
        f"before and {os.getloadavg()[0]:.1f} after. {given.note}".rstrip(),
        "",
        "Bundled digits, PNG in, binary map out, no frames. The engine alone: "
        f"{1000 * single:.1f} ms for one ({1000 * single_after:.1f} ms afterwards), {rate:.0f} "
        f"explanations/s in batches of 32 ({rate_after:.0f} afterwards). Shares and differences "
        "are to the first figures. Clients run on the same cores; their CPU time is in the table.",
        "",
        "| server | clients | p50 ms | p95 ms | p99 ms | per s | share of engine | p50 - engine ms "
        "| CPU of clients | start to first answer s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    from cae_fast.files import atomic_write

    with atomic_write(given.out) as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
