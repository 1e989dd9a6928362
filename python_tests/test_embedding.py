# SPDX-License-Identifier: Apache-2.0
"""The files of docs/embedding.md, run as they stand there: real servers, but for Triton."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from serving_cases import DIGITS, ROOT, SAMPLES

import cae_fast as cf

PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
PNG = SAMPLES[0].read_bytes()


def written(name: str, folder: Path) -> Path:
    """A file of the page, in a folder."""
    found = re.search(rf"`[^`\n]*{re.escape(name)}`.*?\n```\w*\n(.*?)\n```", PAGE, re.DOTALL)
    assert found is not None
    (folder / name).write_text(found[1] + "\n", encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def expected() -> cf.Explanation:
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=cf.CodeBank.load(DIGITS / "bank.csv"),
        backend="cpu",
    )
    return explainer.explain(cf.load_images([PNG], size=32, channels=1))


def check(answer: dict[str, Any], expected: cf.Explanation) -> None:
    assert answer["status"] == str(expected.status[0]) == "flipped"
    np.testing.assert_allclose(answer["saliency"], expected.saliency[0], atol=1e-5)


@contextlib.contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """A server until it is no longer asked, with everything that it started."""
    path = os.pathsep.join([str(ROOT), str(folder)])
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        end = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def asked(port: int, path: str = "/explain", **options: Any) -> httpx.Response:
    """One answer; again where the server listens and is not ready yet."""
    end = time.monotonic() + 90
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(f"http://127.0.0.1:{port}{path}", timeout=60, **options)
            if answer.status_code not in (404, 503) or time.monotonic() > end:
                return answer
        assert time.monotonic() < end
        time.sleep(0.2)


def test_fastapi(tmp_path: Path, expected: cf.Explanation) -> None:
    written("fastapi_app.py", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", str(port)]
    with running(command, tmp_path, port):
        check(asked(port, files={"image": PNG}).json(), expected)
        wrong = asked(port, files={"image": b"no image"})
        assert wrong.status_code == 400
        assert "wanted a PNG" in wrong.json()["detail"]


def test_litserve(tmp_path: Path, expected: cf.Explanation) -> None:
    pytest.importorskip("litserve")
    file = written("lit_app.py", tmp_path)
    port = free_port()
    body = {"image": base64.b64encode(PNG).decode()}
    with running([sys.executable, str(file), str(port)], tmp_path, port):
        asked(port, json=body)
        with ThreadPoolExecutor(4) as pool:
            for answer in [pool.submit(asked, port, json=body) for _ in range(8)]:
                check(answer.result().json(), expected)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_serve(tmp_path: Path, expected: cf.Explanation) -> None:
    pytest.importorskip("ray.serve")
    written("ray_app.py", tmp_path)
    port = free_port()
    start = tmp_path / "start.py"
    start.write_text(
        "import ray, sys, time\n"
        "from ray import serve\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "serve.start(http_options={'host': '127.0.0.1', 'port': int(sys.argv[1])})\n"
        "from ray_app import app\n"
        "serve.run(app)\n"
        "time.sleep(300)\n"
    )
    with running([sys.executable, str(start), str(port)], tmp_path, port):
        asked(port, "/", content=PNG)
        with ThreadPoolExecutor(4) as pool:
            for answer in [pool.submit(asked, port, "/", content=PNG) for _ in range(8)]:
                check(answer.result().json(), expected)


class StandIn(ModuleType):
    """Triton's module, as far as the example needs it."""

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: request[name])

    @staticmethod
    def Tensor(name: str, array: Any) -> tuple[str, Any]:
        assert isinstance(array, np.ndarray)
        return name, array

    @staticmethod
    def TritonError(message: str) -> str:
        return message

    @staticmethod
    def InferenceResponse(output_tensors: Any = (), error: str | None = None) -> Any:
        return SimpleNamespace(outputs=dict(output_tensors), error=error)


def test_triton_python_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: cf.Explanation
) -> None:
    (tmp_path / "1").mkdir()
    file = written("model.py", tmp_path)
    for name in ("model.safetensors", "classifier.onnx", "bank.csv"):
        shutil.copy(DIGITS / name, tmp_path / "1" / name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", StandIn())
    spec = importlib.util.spec_from_file_location("triton_example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(tmp_path), "model_version": "1"})
    images = cf.load_images([PNG], size=32, channels=1)
    good, bad = model.execute([{"IMAGE": images}, {"IMAGE": images[:, :, :16]}])
    check({"status": good.outputs["STATUS"][0], "saliency": good.outputs["SALIENCY"][0]}, expected)
    assert good.outputs["COUNTERFACTUAL"].shape == images.shape
    assert good.outputs["STATUS"].dtype == object
    assert bad.outputs == {}
    assert "32" in bad.error
    config = written("config.pbtxt", tmp_path).read_text()
    said = dict(re.findall(r'(?:input|output) \{ name: "(\w+)" data_type: (\w+)', config))
    assert said.pop("IMAGE") == "TYPE_FP32"
    kinds = {np.dtype(object): "TYPE_STRING", np.dtype(np.float32): "TYPE_FP32"}
    assert said == {name: kinds[array.dtype] for name, array in good.outputs.items()}
