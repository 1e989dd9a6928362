# SPDX-License-Identifier: Apache-2.0
"""Guards of the service that need no server: the token, and what may become an array."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cae_fast.serving import tensors
from cae_fast.serving.edge import Edge
from cae_fast.serving.jobs import Refused
from cae_fast.serving.metrics import Metrics
from cae_fast.serving.settings import ModelFiles, Settings

FILES = {"m": ModelFiles("model.safetensors", "classifier.onnx", "bank.csv")}


def status(path: str, root: str = "", token: str | None = None) -> int:
    """HTTP status of a request through the edge, around an app that answers 200."""
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root, "headers": headers}
    edge = Edge(app, Settings(FILES, token="a-secret"), Metrics())
    asyncio.run(edge(scope, receive, send))
    return seen[0]


@pytest.mark.parametrize("root", ["", "/app", "/app/", "/v2/health", "/page"])
@pytest.mark.parametrize("path", ["/explain", "/v1/models", "/metrics", "/v2", "/anything", "//v1"])
def test_token_is_needed_below_any_root(root: str, path: str) -> None:
    address = root.rstrip("/") + path
    assert status(address, root) == 401
    assert status(address, root, "wrong") == 401
    assert status(address, root, "a-secret") == 200


@pytest.mark.parametrize("root", ["", "/app"])
@pytest.mark.parametrize("path", ["/", "/page/page.js", "/v2/health/live"])
def test_page_and_health_are_open(root: str, path: str) -> None:
    assert status(root + path, root) == 200


def infer(**changed: Any) -> bytes:
    tensor = {"name": "IMAGE", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2.5]]}
    outputs = changed.pop("outputs", [])
    return json.dumps({"inputs": [tensor | changed], "outputs": outputs}).encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"data": [["x" * 1000, 1]]},
        {"data": [[None, 1]]},
        {"data": [[1], [1, 2]]},
        {"data": [[1, [2]]]},
        {"data": [[1, 2, 3]]},
        {"data": [1, {}]},
        {"data": [[[]]]},
        {"outputs": 5},
        {"outputs": {"name": "STATUS"}},
    ],
)
def test_no_tensor_of_anything_but_numbers(changed: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        tensors.parse(infer(**changed), None)
    assert refused.value.status == 400
    assert tensors.parse(infer(), None).inputs["IMAGE"].tolist() == [[1, 2.5]]


def test_long_text_among_numbers_takes_no_memory() -> None:
    import tracemalloc

    body = infer(data=["x" * 100_000, *[0] * 100_000], shape=[100_001])
    tracemalloc.start()
    with pytest.raises(Refused):
        tensors.parse(body, None)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 * 2**20  # as an array of texts: 40 GB


def test_engine_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process can be made for a while: nothing is leaked, and it is ready after that."""
    import os
    import subprocess

    from cae_fast.serving.engine_process import RemoteEngine

    start = subprocess.Popen
    refusals = 0

    def refuse(*arguments: Any, **options: Any) -> Any:
        nonlocal refusals
        refusals += 1
        if refusals <= 3:
            raise BlockingIOError(11, "no more processes")
        return start(*arguments, **options)

    async def live() -> None:
        engine = RemoteEngine(Settings(FILES), None)
        await engine.start()
        opened = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(subprocess, "Popen", refuse)
        assert engine.pid is not None
        os.kill(engine.pid, 9)
        async with asyncio.timeout(30):
            while engine.ready:
                await asyncio.sleep(0.02)
            while not engine.ready:
                await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) == opened
        await engine.stop()

    asyncio.run(live())
    assert refusals == 4
