# SPDX-License-Identifier: Apache-2.0
"""What was accepted is answered to its end, by the model it began with."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_workspace import cae_fast
from PIL import Image
from serving_cases import DIGITS, SAMPLES, digits_arguments, serving

from cae_fast.serving import routes_explain
from cae_fast.serving.batcher import Batcher
from cae_fast.serving.catalog import Catalog, ServedModel
from cae_fast.serving.jobs import Job, Options, Refused
from cae_fast.serving.metrics import Metrics
from cae_fast.serving.settings import ModelFiles, Settings

SLOW = {"CAE_TEST_SLEEP_S": "0.05"}
FRAMES = 32
FILES = ModelFiles(
    model=str(DIGITS / "model.safetensors"),
    classifier=str(DIGITS / "classifier.onnx"),
    bank=str(DIGITS / "bank.csv"),
)


def slow_digits(*options: str) -> list[str]:
    return [*digits_arguments("serving_faults:classifier"), *options]


def check_stream(lines: list[Any]) -> None:
    assert lines[0]["status"] == "flipped"
    assert [line for line in lines if "error" in line] == []
    assert sum(len(line["frames"]["t"]) for line in lines[1:]) == FRAMES


@pytest.mark.parametrize("layout", [[], ["--in-process"]], ids=["default", "in-process"])
def test_what_was_accepted_outlives_sigterm(layout: list[str]) -> None:
    body = SAMPLES[0].read_bytes()
    head = (
        "POST /explain?format=raw HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with serving(*slow_digits(*layout), env=SLOW) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head + body[:100])  # accepted, and not decoded before SIGTERM
            data = {"format": "ndjson", "frames": str(FRAMES)}
            files = {"image": body}
            with server.http.stream("POST", "/explain", files=files, data=data) as response:
                lines = response.iter_lines()
                received = [json.loads(next(lines))]
                server.process.send_signal(signal.SIGTERM)
                received.append(json.loads(next(lines)))
                connection.sendall(body[100:])
                received += map(json.loads, lines)
            check_stream(received)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.process.wait(20) == 0


def test_a_stream_goes_on_with_the_model_it_began_with() -> None:
    options = ("--name", "m", "--allow-reload")
    with serving(*slow_digits(*options), env=SLOW) as server:
        data = {"format": "ndjson", "frames": str(FRAMES)}
        files = {"image": SAMPLES[0].read_bytes()}
        with server.http.stream("POST", "/explain", files=files, data=data) as response:
            lines = response.iter_lines()
            received = [json.loads(next(lines))]
            with ThreadPoolExecutor(1) as pool:
                load = pool.submit(server.http.post, "/v2/repository/models/m/load")
                received += map(json.loads, lines)
                assert load.result().status_code == 200
        check_stream(received)


class FakeEngine:
    """Notes what it was told to drop."""

    fault = ""
    ready = True
    in_flight = 0
    depth = 1

    def __init__(self) -> None:
        self.dropped: list[int] = []

    async def load(self, name: str, version: int, files: ModelFiles) -> dict[str, Any]:
        return {"class_names": ["a", "b"], "num_classes": 2, "image_size": 32, "in_channels": 1}

    async def drop(self, name: str, version: int) -> None:
        self.dropped.append(version)


def test_a_version_is_dropped_when_nobody_holds_it_any_more() -> None:
    async def play() -> None:
        engine = FakeEngine()
        catalog = Catalog(Settings(models={"m": FILES}), [engine])  # type: ignore[list-item]
        await catalog.load("m")
        held: list[ServedModel] = [catalog.get("m")]
        await catalog.load("m")
        assert catalog.get("m").version == 2
        await asyncio.sleep(0.2)
        assert engine.dropped == []  # somebody decodes, or streams
        held.clear()
        await asyncio.sleep(0.2)
        assert engine.dropped == [1]
        await catalog.unload("m")
        await asyncio.sleep(0.2)
        assert engine.dropped == [1, 2]

    gc.disable()  # counted references alone must do
    try:
        asyncio.run(play())
    finally:
        gc.enable()


def test_only_what_comes_anew_is_refused_while_draining() -> None:
    async def play() -> None:
        engine = FakeEngine()
        engine.ready = False
        settings = Settings(models={"m": FILES}, queue_size=2)
        batcher = Batcher([engine], settings, Metrics())  # type: ignore[list-item]
        batcher.draining = True
        with pytest.raises(Refused) as refused:
            batcher.admit()
        assert refused.value.code == "draining"
        model: Any = SimpleNamespace(name="m", version=1, image_bytes=4096, num_classes=2)
        job = Job(None, None, Options())  # type: ignore[arg-type]
        with pytest.raises(Refused) as late:  # taken: it waits for the engine until its deadline
            await batcher.submit(model, [job], timeout_s=0.05)
        assert late.value.code == "deadline"
        with pytest.raises(Refused) as full:
            await batcher.submit(model, [job] * 3, timeout_s=0.05)
        assert full.value.code == "queue_full"

    asyncio.run(play())


@pytest.mark.parametrize(("side", "aside"), [(32, False), (256, False), (257, True), (3000, True)])
def test_small_files_of_many_pixels_leave_the_loop_alone(side: int, aside: bool) -> None:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, format="PNG")
    data = buffer.getvalue()
    assert len(data) <= routes_explain._SMALL_FILE_BYTES
    calls = []

    async def in_thread(call: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(call)
        return call(*arguments, **named)

    service: Any = SimpleNamespace(
        batcher=SimpleNamespace(arriving=0),
        settings=Settings(models={"m": FILES}),
        metrics=Metrics(),
        in_thread=in_thread,
    )
    info = {"num_classes": 2, "class_names": [], "image_size": 32, "in_channels": 1}
    image = asyncio.run(routes_explain.decoded(service, data, ServedModel("m", 1, info, ())))
    assert image.shape == (1, 32, 32)
    assert len(calls) == aside


@pytest.mark.parametrize("option", [("--name", "a"), ("--samples", "."), ("--k", "3")])
def test_options_of_one_model_beside_many(option: tuple[str, str], tmp_path: Path) -> None:
    config = tmp_path / "service.toml"
    config.write_text("")
    for many in (["--demo"], ["--config", str(config)]):
        result = cae_fast("serve", *many, *option)
        assert result.code == 2
        assert f"{option[0]} is for MODEL CLASSIFIER" in result.err
        assert result.err.count("\n") == 1
