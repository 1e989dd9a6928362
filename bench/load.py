# SPDX-License-Identifier: Apache-2.0
"""Load test of the service: latency and throughput at 1, 8 and 64 clients.

The bundled digits, PNG in and the binary map out (no frames), through `cae-fast serve` in both
process layouts, beside a naive FastAPI handler around `Explainer.explain` and the same in LitServe.
Servers are started anew in several rounds, one after the other; before and after each one the
engine is measured alone on the same images: a share or a difference is to the mean of these two.
Medians over rounds are written. Clients are asyncio tasks of this process; its CPU time is given.

    python bench/load.py [--seconds 3] [--rounds 3] [--out bench/RESULTS_SERVICE.md]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
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


ENGINE = """
import time, numpy as np, cae_fast as cf
from cae_fast.demo import model_folder
f = model_folder("digits")
e = cf.Explainer(cf.CAE.load(f / "model.safetensors"), cf.Classifier.load(f / "classifier.onnx"),
    bank=cf.CodeBank.load(f / "bank.csv"))
x = cf.load_images(sorted((f / "samples").glob("*.png")), size=32, channels=1)
many = np.concatenate([x] * (1 + 31 // len(x)))[:32]
def median(parts, seconds):
    for part in parts[:3]:
        e.explain(part, k=10)
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        for part in parts:
            start = time.perf_counter(); e.explain(part, k=10)
            times.append(time.perf_counter() - start)
    return float(np.median(times))
while input():
    print(median([x[i:i + 1] for i in range(len(x))], 0.7), 32 / median([many], 1.0), flush=True)
"""


class EngineAlone:
    """A process that measures the engine when asked, and waits otherwise."""

    def __init__(self) -> None:
        """Starts it."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", ENGINE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def measure(self) -> tuple[float, float]:
        """Median seconds of one explanation, and explanations per second in batches of 32."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        single, rate = map(float, self._process.stdout.readline().split())
        return single, rate

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int, bodies: list[bytes]) -> Iterator[float]:
    """A server as long as the block; yields seconds until it explained."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        while True:
            with contextlib.suppress(OSError, AssertionError, IndexError, EOFError):
                asyncio.run(run_clients(port, 1, 0.01, bodies))
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind


async def client(
    port: int, until: float, bodies: list[bytes], first: int, times: list[float]
) -> None:
    """One connection that asks again and again, for one image after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in itertools.islice(itertools.cycle(bodies), first, None):
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


async def run_clients(port: int, count: int, seconds: float, bodies: list[bytes]) -> list[float]:
    """Seconds of every request of `count` clients."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, until, bodies, i, times) for i in range(count)))
    return times


def request_bytes(content: bytes, kind: str, query: str = "") -> bytes:
    """A request as it goes over the wire."""
    head = f"POST /explain{query} HTTP/1.1\r\nhost: bench\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@dataclass
class Case:
    """What was measured of one server with one number of clients, a value a round."""

    p50: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    more: list[float] = field(default_factory=list)
    clients_cpu: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)

    def row(self, name: str, clients: int) -> str:
        """Of the table; in brackets the range over rounds."""
        m = statistics.median
        return (
            f"| {name} | {clients} | {m(self.p50):.1f} | {m(self.p95):.1f} | {m(self.p99):.1f} | "
            f"{m(self.served):.0f} | {m(self.share):.0%} "
            f"({min(self.share):.0%} to {max(self.share):.0%}) | {m(self.more):+.1f} "
            f"({min(self.more):+.1f} to {max(self.more):+.1f}) | {m(self.clients_cpu):.0%} | "
            f"{m(self.ready):.1f} |"
        )


def measure_server(
    engine: EngineAlone, command: list[str], bodies: list[bytes], seconds: float
) -> tuple[dict[int, Case], list[tuple[float, float]]]:
    """One round of one server: a case for each number of clients, and the engine before, after."""
    port = free_port()
    alone = [engine.measure()]
    raw: dict[int, tuple[list[float], float, float]] = {}
    with running([*command, str(port)], port, bodies) as ready:
        asyncio.run(run_clients(port, 8, 1.0, bodies))
        for count in CLIENTS:
            cpu, start = time.process_time(), time.perf_counter()
            times = asyncio.run(run_clients(port, count, seconds, bodies))
            spent = time.perf_counter() - start
            raw[count] = times, spent, (time.process_time() - cpu) / spent
    alone.append(engine.measure())
    single = statistics.mean(single for single, _ in alone)
    rate = statistics.mean(rate for _, rate in alone)
    cases = {}
    for count, (times, spent, cpu) in raw.items():
        p50, p95, p99 = (1000 * float(np.percentile(times, q)) for q in (50, 95, 99))
        served = len(times) / spent
        values = (p50, p95, p99, served, served / rate, p50 - 1000 * single, cpu, ready)
        cases[count] = Case(*([value] for value in values))
    return cases, alone


def servers(scratch: Path, pngs: list[bytes]) -> dict[str, tuple[list[str], list[bytes]]]:
    """Commands, to which a port is added, and requests."""
    from cae_fast.demo import model_folder

    for name, text in (("naive.py", NAIVE), ("lit.py", LITSERVE)):
        (scratch / name).write_text(text)
    folder = model_folder("digits")
    files = [str(folder / "model.safetensors"), str(folder / "classifier.onnx")]
    serve = [sys.executable, "-m", "cae_fast", "serve", *files, "--bank", str(folder / "bank.csv")]
    serve += ["--log", "off"]
    ours = [request_bytes(png, "image/png", "?format=raw") for png in pngs]
    lit = [
        request_bytes(
            json.dumps({"image": base64.b64encode(png).decode()}).encode(), "application/json"
        )
        for png in pngs
    ]
    return {
        "cae-fast serve": ([*serve, "--port"], ours),
        "cae-fast serve --in-process": ([*serve, "--in-process", "--port"], ours),
        "naive FastAPI": (
            [sys.executable, str(scratch / "naive.py")],
            [request_bytes(png, "image/png") for png in pngs],
        ),
        "LitServe": ([sys.executable, str(scratch / "lit.py")], lit),
    }


def main() -> None:
    """Measures and writes the page."""
    from cae_fast.demo import model_folder
    from cae_fast.files import atomic_write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "RESULTS_SERVICE.md")
    parser.add_argument("--note", default="", help="what disturbed the machine")
    given = parser.parse_args()
    samples = sorted((model_folder("digits") / "samples").glob("*.png"))
    load_before = os.getloadavg()[0]
    cases: dict[tuple[str, int], Case] = {}
    alone: list[tuple[float, float]] = []
    engine = EngineAlone()
    with tempfile.TemporaryDirectory() as scratch:
        peers = servers(Path(scratch), [sample.read_bytes() for sample in samples])
        for number in range(given.rounds):
            for name, (command, bodies) in peers.items():
                measured, around = measure_server(engine, command, bodies, given.seconds)
                alone += around
                for count, case in measured.items():
                    kept = cases.setdefault((name, count), Case())
                    for item in fields(Case):
                        getattr(kept, item.name).extend(getattr(case, item.name))
                    print(f"round {number + 1}:", case.row(name, count), flush=True)
    engine.close()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.strip()
    singles, rates = zip(*alone, strict=True)
    text = [
        "# The service under load",
        "",
        f"Written by `python bench/load.py --seconds {given.seconds:g} --rounds {given.rounds}` at "
        f"commit {commit}, Python {platform.python_version()}, {os.cpu_count()} cores, load "
        f"average {load_before:.1f} before. {given.note}".rstrip(),
        "",
        f"Bundled digits ({len(samples)} images in turn), PNG in, binary map out, no frames. The "
        f"engine alone: {1000 * statistics.median(singles):.1f} ms for one "
        f"({1000 * min(singles):.1f} to {1000 * max(singles):.1f}), "
        f"{statistics.median(rates):.0f} explanations/s in batches of 32 ({min(rates):.0f} to "
        f"{max(rates):.0f}). It is measured before and after each server: shares and differences "
        "are to the mean of the two; medians over rounds, in brackets their range. Clients run on "
        "the same cores; their CPU time is in the table.",
        "",
        "| server | clients | p50 ms | p95 ms | p99 ms | per s | share of engine | p50 - engine ms "
        "| CPU of clients | start to first answer s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(case.row(name, count) for (name, count), case in cases.items()),
    ]
    with atomic_write(given.out) as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
