# SPDX-License-Identifier: Apache-2.0
"""`cf.Client` against a real server, and against servers that refuse or vanish."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_cases import DIGITS, SAMPLES, Server, digits_arguments, serving

import cae_fast as cf

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        *digits_arguments(), "--name", "digits", env={"CAE_SERVE_TOKEN": TOKEN}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[cf.Client]:
    with cf.Client(server.url, token=TOKEN) as made:
        yield made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return cf.load_images(SAMPLES, size=32, channels=1)


@pytest.fixture(scope="module")
def expected(images: np.ndarray) -> cf.Explanation:
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=DIGITS / "bank.csv",
    )
    return explainer.explain(images, target=[8, *[None] * 11], k=10, frames=3)


def test_batch_is_the_explainers(
    client: cf.Client, images: np.ndarray, expected: cf.Explanation, tmp_path: Path
) -> None:
    result = client.explain(images, target=[8, *[None] * 11], frames=3)
    assert isinstance(result, cf.Explanation)
    np.testing.assert_array_equal(result.status, expected.status)
    np.testing.assert_array_equal(result.target_class, expected.target_class)
    np.testing.assert_array_equal(result.exemplar, expected.exemplar)
    assert result.exemplar_names == expected.exemplar_names
    np.testing.assert_allclose(result.t_flip, expected.t_flip, atol=1 / 256)
    np.testing.assert_allclose(result.logits_source, expected.logits_source, atol=1e-3)
    np.testing.assert_allclose(result.reconstruction, expected.reconstruction, atol=1e-3)
    same = np.flatnonzero(result.t_flip == expected.t_flip)
    assert len(same) >= 10
    np.testing.assert_allclose(result.difference[same], expected.difference[same], atol=1e-3)
    np.testing.assert_allclose(result.saliency[same], expected.saliency[same], atol=1e-3)
    assert result.path_images.shape == expected.path_images.shape
    np.testing.assert_allclose(result.path_images, expected.path_images, atol=1 / 127)
    np.testing.assert_array_equal(result.frame_t, expected.frame_t)
    result.save(tmp_path / "kept")
    again = cf.Explanation.load(tmp_path / "kept")
    np.testing.assert_array_equal(again.saliency, result.saliency)


@pytest.mark.parametrize("kind", ["edit", "evidence", "weighted"])
def test_maps_are_of_the_kind_that_was_asked_for(
    client: cf.Client, images: np.ndarray, expected: cf.Explanation, kind: str
) -> None:
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=DIGITS / "bank.csv",
    )
    wanted = explainer.explain(images[:2], k=10, saliency=kind).saliency
    found = client.explain(images[:2], saliency=kind)
    np.testing.assert_allclose(found.saliency, wanted, atol=1e-3)
    assert np.abs(found.saliency[1] - expected.saliency[1]).max() > 0.1
    assert found.path_images is None
    with pytest.raises(cf.ServiceError, match="saliency must be one of difference"):
        client.explain(images[:1], saliency="heat")


def test_a_path_may_end_at_its_exemplar(
    client: cf.Client, images: np.ndarray, expected: cf.Explanation
) -> None:
    found = client.explain(images[1:4], reach=1, frames=3)
    assert found.meta["parameters"]["reach"] == 1
    assert (found.t_flip > expected.t_flip[1:4]).all(), "the same flips, on a shorter line"
    assert np.abs(found.path_images[:, -1] - expected.path_images[1:4, -1]).max() > 0.1


def test_second_paths_come_with_what_they_are(client: cf.Client, images: np.ndarray) -> None:
    """One exemplar, no way beyond it: some paths to a nought flip only when tried again."""
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=DIGITS / "bank.csv",
    )
    asked: dict[str, Any] = {"k": 1, "reach": 1, "target": 0, "frames": 3}
    expected = explainer.explain(images, **asked)
    again = np.flatnonzero(expected.searched_again)
    assert len(again)
    found = client.explain(images, **asked)
    np.testing.assert_array_equal(found.searched_again, expected.searched_again)
    np.testing.assert_array_equal(found.reconstructed_class, expected.reconstructed_class)
    np.testing.assert_array_equal(found.exemplar, expected.exemplar)
    np.testing.assert_allclose(found.path_images, expected.path_images, atol=1 / 127)
    for row in again:
        np.testing.assert_allclose(found.second_path[row], expected.second_path[row], atol=1e-4)
    once = client.explain(images, second_try=False, **asked)
    assert not once.searched_again.any()
    assert (once.status[again] != "flipped").all()
    with pytest.raises(cf.ServiceError, match="second_try must be true or false"):
        client.explain(images[:1], second_try="perhaps")  # type: ignore[arg-type]


def test_every_kind_of_image(client: cf.Client) -> None:
    picture = Image.open(SAMPLES[0]).convert("L")
    kinds = [SAMPLES[0], str(SAMPLES[0]), SAMPLES[0].read_bytes(), picture, np.asarray(picture)]
    results = [client.explain(kind, target="8") for kind in kinds]
    assert {len(result) for result in results} == {1}
    assert {str(result.status[0]) for result in results} == {"flipped"}
    for result in results[1:]:
        np.testing.assert_allclose(result.images, results[0].images, atol=1e-6)


def test_models_and_health(client: cf.Client, server: Server) -> None:
    assert [model["name"] for model in client.models()] == ["digits"]
    assert client.ready()
    assert client.health() == {"live": True, "ready": True, "reason": ""}


def test_refusals_are_errors(client: cf.Client, server: Server) -> None:
    with pytest.raises(cf.ServiceError, match="target must be one of") as caught:
        client.explain(SAMPLES[0], target="dog")
    assert caught.value.status == 400
    assert caught.value.code == "unknown_class"
    assert caught.value.request_id
    with pytest.raises(cf.ServiceError) as caught:
        cf.Client(server.url, token="not the token").models()
    assert caught.value.status == 401
    with pytest.raises(cf.ServiceError) as caught:
        client.explain(b"no image at all")
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 2), np.int64), np.zeros(3, np.float32), [], np.zeros((0, 1, 32, 32), "f")],
)
def test_bad_images_are_not_sent(client: cf.Client, images: object) -> None:
    with pytest.raises(ValueError, match="images"):
        client.explain(images)


def test_nan_is_rejected_alone(client: cf.Client, images: np.ndarray) -> None:
    poisoned = images[:8].copy()
    poisoned[3, 0, 5, 5] = np.nan
    result = client.explain(poisoned)
    assert result.status[3] == "rejected"
    clean = client.explain(images[:8])
    others = [i for i in range(8) if i != 3]
    np.testing.assert_array_equal(result.status[others], clean.status[others])
    np.testing.assert_allclose(result.t_flip[others], clean.t_flip[others], atol=1 / 256)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="url must begin with"):
        cf.Client("localhost:8000")
    with pytest.raises(ValueError, match="timeout_s"):
        cf.Client(timeout_s=0)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = cf.Client(f"http://127.0.0.1:{port}", retries=1)
    assert not client.ready()
    with pytest.raises(cf.ServiceError, match="ConnectError") as caught:
        client.models()
    assert caught.value.status == 0


def test_full_service_is_asked_again() -> None:
    """A stub that counts: real refusals of a real queue are in test_serving_load."""
    times: list[float] = []

    class Full(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            times.append(time.monotonic())
            ready = len(times) > 2
            body = b'{"models": []}' if ready else b'{"error": {"message": "full", "code": "q"}}'
            self.send_response(200 if ready else 503)
            self.send_header("Retry-After", "0.2")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Full) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        client = cf.Client(f"http://127.0.0.1:{stub.server_port}")
        assert client.models() == []
        assert len(times) == 3
        assert times[1] - times[0] >= 0.2
        times.clear()
        with pytest.raises(cf.ServiceError, match="full"):
            cf.Client(client.url, retries=0).models()
        client.close()
        stub.shutdown()
