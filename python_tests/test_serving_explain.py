# SPDX-License-Identifier: Apache-2.0
"""A real server with the bundled digits: what `/explain` and its neighbours answer."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from serving_cases import DIGITS, SAMPLES, Server, digits_arguments, serving

import cae_fast as cf
from cae_fast.serving.projection import Plane


@pytest.fixture(scope="module", params=["default", "in-process"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    mode = ["--in-process"] if request.param == "in-process" else []
    with serving(*digits_arguments(), "--name", "digits", *mode) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> cf.Explanation:
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=DIGITS / "bank.csv",
    )
    images = cf.load_images(SAMPLES, size=32, channels=1)
    return explainer.explain(images, target=[None, 8, *[None] * 10], k=10, frames=5)


def png(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_answer_is_the_explainers(server: Server, expected: cf.Explanation) -> None:
    response = server.explain(frames="5", tolerance=str(1 / 256))
    assert response.status_code == 200
    said = response.json()
    assert said["status"] == expected.status[0] == "flipped"
    assert said["t_flip"] == pytest.approx(float(expected.t_flip[0]), abs=1 / 256)
    assert said["source_class"] == {"index": 3, "name": "3"}
    assert said["target_class"]["index"] == expected.target_class[0]
    assert said["class_names"] == list("0123456789")
    assert sum(said["probabilities_source"]) == pytest.approx(1, abs=1e-4)
    assert said["exemplar"]["rows"] == expected.exemplar[0].tolist()
    assert said["exemplar"]["labels"] == [said["target_class"]["index"]] * 10
    assert len(said["path"]["t"]) == len(said["path"]["probabilities"]) == len(expected.path_t[0])
    saliency = png(said["images"]["saliency"])
    assert saliency.dtype == np.uint8
    assert saliency.shape == (32, 32)
    np.testing.assert_allclose(saliency / 255, expected.saliency[0], atol=0.02)
    np.testing.assert_allclose(
        png(said["images"]["counterfactual"]) / 127.5 - 1, expected.counterfactual[0, 0], atol=0.02
    )
    assert said["frames"]["t"] == [0, 0.25, 0.5, 0.75, 1]
    assert len(said["frames"]["probabilities"]) == 5
    assert len(said["frames"]["probabilities"][0]) == 10
    last = png(said["frames"]["png"][4]) / 127.5 - 1
    np.testing.assert_allclose(last, expected.path_images[0, 4, 0], atol=0.02)
    assert said["code"]["path"][0] == pytest.approx(said["code"]["image"], abs=1e-4)
    start, end = (np.array(said["code"][which]) for which in ("image", "exemplar"))
    assert said["exemplar"]["t"] == pytest.approx(1 / expected.reach, abs=1e-6)
    assert expected.reach > 1
    way = expected.reach * (end - start)
    last = start + said["path"]["t"][-1] * way
    assert said["code"]["path"][-1] == pytest.approx(last.tolist(), abs=1e-4)
    assert said["code"]["end"] == pytest.approx((start + way).tolist(), abs=1e-4)
    assert {"queue", "explain", "total"} <= said["seconds"].keys()
    assert said["request_id"] == response.headers["x-request-id"]


def test_raw_map_and_image_body(server: Server, expected: cf.Explanation) -> None:
    response = server.http.post(
        "/explain?format=raw&target=8",
        content=SAMPLES[1].read_bytes(),
        headers={"content-type": "image/png", "x-request-id": "mine-1"},
    )
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-status"] == expected.status[1]
    shape = tuple(map(int, response.headers["x-shape"].split(",")))
    saliency = np.frombuffer(response.content, "<f4").reshape(shape)
    np.testing.assert_allclose(saliency, expected.saliency[1], atol=1e-3)


def test_undefined_numbers_are_null(server: Server) -> None:
    said = server.explain(target="3").json()
    assert said["status"] == "already_target"
    assert said["t_flip"] is None
    assert said["bracket"] == [None, None]


def test_report_is_a_page(server: Server) -> None:
    response = server.explain(format="html", name="<script>alert(1)</script>", frames="3")
    assert response.headers["content-type"].startswith("text/html")
    assert "<script>alert(1)" not in response.text
    assert "&lt;script&gt;alert(1)" in response.text
    assert "attachment" in response.headers["content-disposition"]
    assert "Exemplar" in response.text
    kept = cf.CodeBank.load(DIGITS / "bank.csv").thumbnails
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', response.text)
    assert kept is not None
    assert {pixels(base64.b64decode(text)) for text in shown} & set(map(pixels, kept))


def pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).convert("L").tobytes()


def test_streamed_frames_come_in_lines(server: Server) -> None:
    files = {"image": SAMPLES[0].read_bytes()}
    data = {"format": "ndjson", "frames": "11"}
    with server.http.stream("POST", "/explain", files=files, data=data) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    assert lines[0]["status"] == "flipped"
    assert "frames" not in lines[0]
    t = [t for line in lines[1:] for t in line["frames"]["t"]]
    whole = server.explain(frames="11").json()["frames"]
    assert len(lines) == 3
    assert t == whole["t"]
    pictures = [text for line in lines[1:] for text in line["frames"]["png"]]
    for mine, theirs in zip(pictures, whole["png"], strict=True):
        np.testing.assert_allclose(png(mine).astype(int), png(theirs), atol=1)


def test_frames_follow_a_second_path(server: Server) -> None:
    """Towards a nought by one exemplar; streamed frames are asked for later, by another job."""
    asked = {"k": "1", "reach": "1", "target": "0"}
    images = cf.load_images(SAMPLES, size=32, channels=1)
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=DIGITS / "bank.csv",
    )
    found = explainer.explain(images, 0, k=1, reach=1, frames=5)
    row = int(np.flatnonzero(found.searched_again)[0])
    files = {"image": SAMPLES[row].read_bytes()}
    data = {"format": "ndjson", "frames": "5", **asked}
    with server.http.stream("POST", "/explain", files=files, data=data) as response:
        first, *lines = [json.loads(line) for line in response.iter_lines()]
    assert first["second_path"] is True
    assert first["reconstructed_class"]["index"] == found.reconstructed_class[row]
    assert "second" not in first["status_text"]  # in words, not by its name in the program
    assert "from the middle of their class" in first["status_text"]
    pictures = [png(text) for line in lines for text in line["frames"]["png"]]
    np.testing.assert_allclose(
        np.stack(pictures) / 127.5 - 1, found.path_images[row, :, 0], atol=0.02
    )
    start, end = (np.array(place) for place in (first["code"]["path"][0], first["code"]["end"]))
    star = np.array(first["code"]["exemplar"])
    np.testing.assert_allclose(end, star, atol=1e-3)
    assert np.abs(start - end).max() > 0.1


def test_models_manifold_samples(server: Server) -> None:
    (model,) = server.http.get("/v1/models").json()["models"]
    assert model["name"] == "digits"
    assert model["image_size"] == 32
    assert len(model["samples"]) == 12
    assert model["k"] == 10
    plane = server.http.get("/models/digits/manifold").json()
    assert len(plane["points"]) == 1438  # the bank's rows
    assert plane["explained"][0] >= plane["explained"][1] > 0
    sample = server.http.get("/models/digits/samples/3")
    assert sample.headers["content-type"] == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(sample.content)))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(SAMPLES[3]).convert("L")))
    assert server.http.get("/models/digits/samples/99").status_code == 404
    assert server.http.get("/models/digits/samples/-1").status_code == 400


def test_plane_is_the_principal_one() -> None:
    random = np.random.default_rng(0)
    codes = random.normal(size=(200, 5)) * [5, 1, 3, 0.1, 0.1] + 7
    plane = Plane.of(codes)
    placed = plane.place(codes)
    _, singular, _ = np.linalg.svd(codes - codes.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=0), singular[:2], rtol=1e-4)
    assert sum(plane.explained) == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum())
    assert Plane.of(codes[:, :1]).place(codes[:, :1])[:, 1].tolist() == [0] * 200


def test_headers_and_openapi(server: Server) -> None:
    response = server.http.get("/openapi.json")
    document = response.json()
    assert "/explain" in document["paths"]
    assert "/v2/models/{model}/infer" in document["paths"]
    form = document["paths"]["/explain"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"image", "target", "tolerance", "frames"} <= form["schema"]["properties"].keys()
    assert response.headers["content-security-policy"].startswith("default-src 'self'")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_metrics_count(server: Server) -> None:
    before = server.metric("decodes_per_explanation_count")
    said = server.explain().json()
    decodes = server.metric("decodes_per_explanation_sum")
    assert server.metric("decodes_per_explanation_count") == before + 1
    assert decodes >= said["evaluations"]
    assert server.metric("batch_size_count") >= 1
    for stage in ("decode", "queue", "engine", "encode"):
        assert server.metric("stage_seconds_count", stage=stage) >= 1
    assert server.metric("ready") == 1
    assert server.metric("requests_total", route="/explain", status="200") >= 1


def test_requests_at_once_are_joined(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = server.metric("batch_size_count")
    alone = [server.explain(path.read_bytes()).json() for path in SAMPLES]
    between = server.metric("batch_size_count")
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda path: server.explain(path.read_bytes()).json(), SAMPLES))
    assert between - before == 12
    assert server.metric("batch_size_count") - between < 12
    for one, other in zip(alone, together, strict=True):
        assert one["status"] == other["status"]
        assert one["source_class"] == other["source_class"]
        assert one["t_flip"] == pytest.approx(other["t_flip"], abs=1 / 256)
    assert len({said["request_id"] for said in together}) == 12


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"target": "10"}, "unknown_class"),
        ({"target": "dog"}, "unknown_class"),
        ({"target": "-1"}, "unknown_class"),
        ({"tolerance": "0"}, "bad_value"),
        ({"tolerance": "nan"}, "bad_value"),
        ({"frames": "65"}, "bad_value"),
        ({"frames": "1"}, "bad_value"),
        ({"frames": "1e9"}, "bad_value"),
        ({"path": "spiral"}, "bad_value"),
        ({"reach": "0.5"}, "bad_value"),
        ({"reach": "5"}, "bad_value"),
        ({"format": "exe"}, "bad_value"),
        ({"k": "1000"}, None),
        ({"tolerence": "0.1"}, "unknown_field"),
        ({"model": "cats"}, "unknown_model"),
    ],
)
def test_bad_options(server: Server, options: dict[str, str], code: str | None) -> None:
    response = server.explain(**options)
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert error["request_id"] == response.headers["x-request-id"]
    if code:
        assert error["code"] == code
    if "tolerence" in options:
        assert "did you mean 'tolerance'" in error["message"]


def test_is_ready_soon(server: Server) -> None:
    load = psutil.getloadavg()[0] / (psutil.cpu_count() or 1)
    # 2 s on an idle machine; other work beside it takes its share.
    assert server.seconds_to_ready < 2 * (1.5 + load) + 2


def test_unreachable_port_is_one_line(server: Server) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://127.0.0.1:1/", timeout=5)
