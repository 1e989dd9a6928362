# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol by the real `tritonclient`, and KServe's verb by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving_cases import SAMPLES, Server, digits_arguments, serving

import cae_fast as cf

http = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*digits_arguments(), "--name", "digits", "--allow-reload") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    made = http.InferenceServerClient(server.url.removeprefix("http://"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return cf.load_images(SAMPLES[:4], size=32, channels=1)


def infer_input(array: np.ndarray, *, binary: bool, name: str = "IMAGE") -> Any:
    kinds = {"float32": "FP32", "uint8": "UINT8", "object": "BYTES", "int64": "INT64"}
    made = http.InferInput(name, list(array.shape), kinds[str(array.dtype)])
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def texts(array: Any) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else str(item) for item in array]


def test_what_a_client_asks(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("cats")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("digits")
    inputs = {tensor["name"]: tensor for tensor in metadata["inputs"]}
    assert inputs["IMAGE"]["shape"] == [-1, 1, 32, 32]
    config = client.get_model_config("digits")
    assert config["max_batch_size"] > 0
    assert {tensor["name"] for tensor in config["output"]} == {
        tensor["name"] for tensor in metadata["outputs"]
    }
    (entry,) = client.get_model_repository_index()
    assert entry["state"] == "READY"
    assert client.is_model_ready("digits", metadata["versions"][0])
    assert not client.is_model_ready("digits", "99")
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(
    client: Any, server: Server, images: np.ndarray, binary_in: bool, binary_out: bool
) -> None:
    names = (
        *("STATUS", "SALIENCY", "T_FLIP", "TARGET_CLASS", "COUNTERFACTUAL", "EXEMPLAR"),
        *("RECONSTRUCTED_CLASS", "SEARCHED_AGAIN"),
    )
    result = client.infer(
        "digits",
        [infer_input(images, binary=binary_in)],
        outputs=[http.InferRequestedOutput(name, binary_data=binary_out) for name in names],
        request_id="mine",
    )
    assert result.get_response()["id"] == "mine"
    one = cf.Client(server.url).explain(images)
    status = [
        text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("STATUS")
    ]
    assert status == one.status.tolist()
    assert result.as_numpy("SALIENCY").shape == (4, 32, 32)
    np.testing.assert_allclose(result.as_numpy("T_FLIP"), one.t_flip, atol=1 / 256)
    np.testing.assert_array_equal(result.as_numpy("TARGET_CLASS"), one.target_class)
    np.testing.assert_array_equal(result.as_numpy("EXEMPLAR"), one.exemplar)


def test_other_inputs(client: Any, images: np.ndarray) -> None:
    pixels = np.rint((images + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    files = np.array([path.read_bytes() for path in SAMPLES[:4]], dtype=object)
    targets = np.array([b"8", b"any", b"", b"3"], dtype=object)
    for array in (images, np.ascontiguousarray(pixels), files):
        inputs = [infer_input(array, binary=True), infer_input(targets, binary=True, name="TARGET")]
        result = client.infer("digits", inputs, parameters={"tolerance": 0.02})
        assert result.as_numpy("TARGET_CLASS")[[0, 3]].tolist() == [8, 3]
        assert result.as_numpy("STATUS").shape == (4,)
    indices = infer_input(np.array([8, -1, 9, 3]), binary=False, name="TARGET")
    result = client.infer("digits", [infer_input(images, binary=False), indices])
    assert result.as_numpy("TARGET_CLASS")[[0, 2, 3]].tolist() == [8, 9, 3]


def test_nan_is_rejected_alone(client: Any, images: np.ndarray) -> None:
    poisoned = images.copy()
    poisoned[1, 0, 0, 0] = np.nan
    result = client.infer("digits", [infer_input(poisoned, binary=True)])
    rejected = [text == "rejected" for text in texts(result.as_numpy("STATUS"))]
    assert rejected == [False, True, False, False]


def test_refusals_reach_the_client(client: Any, images: np.ndarray) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="IMAGE must be"):
        client.infer("digits", [infer_input(images[:, :, :16], binary=True)])
    with pytest.raises(InferenceServerException, match="unknown output"):
        client.infer(
            "digits",
            [infer_input(images, binary=True)],
            outputs=[http.InferRequestedOutput("NOSE")],
        )
    with pytest.raises(InferenceServerException, match="there is no model"):
        client.infer("cats", [infer_input(images, binary=True)])
    with pytest.raises(InferenceServerException, match="compressed"):
        client.infer(
            "digits", [infer_input(images, binary=True)], request_compression_algorithm="gzip"
        )


def test_reload_and_unload(client: Any, images: np.ndarray) -> None:
    from tritonclient.utils import InferenceServerException

    before = int(client.get_model_metadata("digits")["versions"][0])
    client.load_model("digits")
    assert int(client.get_model_metadata("digits")["versions"][0]) == before + 1
    with pytest.raises(InferenceServerException, match="own files"):
        client.load_model("digits", config=json.dumps({"x": 1}))
    with pytest.raises(InferenceServerException, match="characters or parts"):
        client.load_model("../digits")
    client.unload_model("digits")
    assert not client.is_model_ready("digits")
    assert not client.is_server_ready()
    with pytest.raises(InferenceServerException, match="not loaded"):
        client.infer("digits", [infer_input(images, binary=True)])
    client.load_model("digits")
    assert client.is_server_ready()
    statistics = client.get_inference_statistics("digits")["model_stats"][0]
    assert statistics["inference_count"] >= 4


def body_of(**tensor: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "IMAGE", "datatype": "FP32", **tensor}]}).encode()


BODIES: list[tuple[str, bytes]] = [
    ("no inputs", b"{}"),
    ("a list", b"[]"),
    ("no shape", body_of(data=[])),
    ("bool size", body_of(shape=[True], data=[1])),
    ("huge", body_of(shape=[2**31 - 1, 2**31 - 1], data=[])),
    ("texts", body_of(shape=[1], data=["a"])),
    ("ragged", body_of(shape=[2], data=[[1], [1, 2]])),
    ("datatype", body_of(shape=[1], data=[1], datatype="FP128")),
    ("size", body_of(shape=[1], parameters={"binary_data_size": 99})),
    ("shared", body_of(shape=[1], parameters={"shared_memory_region": "x"})),
    ("bytes", body_of(name="TARGET", datatype="BYTES", shape=[1], data=[1])),
]


@pytest.mark.parametrize(("what", "body"), BODIES, ids=[what for what, _ in BODIES])
def test_malformed_tensors(server: Server, what: str, body: bytes) -> None:
    response = server.http.post("/v2/models/digits/infer", content=body)
    assert response.status_code == 400, what
    assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1" * 30, "3"])
def test_lying_header_length(server: Server, length: str) -> None:
    response = server.http.post(
        "/v2/models/digits/infer",
        content=b'{"inputs": []}',
        headers={"Inference-Header-Content-Length": length},
    )
    assert response.status_code == 400


def test_kserve_verb(server: Server, images: np.ndarray) -> None:
    b64 = base64.b64encode(SAMPLES[0].read_bytes()).decode()
    instances: list[Any] = [
        {"b64": b64},
        {"image": {"b64": b64}, "target": "8"},
        images[1].tolist(),
        {"b64": "AAAA"},
        {"image": "http://127.0.0.1/"},
    ]
    body = {"instances": instances, "parameters": {"frames": 2}}
    response = server.http.post("/v1/models/digits:explain", json=body)
    assert response.status_code == 200
    said = response.json()["explanations"]
    assert [item.get("status") for item in said[:3]] == ["flipped"] * 3
    assert said[1]["target_class"]["name"] == "8"
    assert len(said[0]["frames"]["png"]) == 2
    assert [item["error"]["code"] for item in said[3:]] == ["bad_image", "bad_image"]
    for wrong in ({}, {"instances": []}, {"instances": [1] * 65}, {"instances": [1], "x": 1}):
        assert server.http.post("/v1/models/digits:explain", json=wrong).status_code == 400
    assert server.http.get("/v1/models/digits").json()["ready"] is True
    assert server.http.post("/v1/models/cats:explain", json=body).status_code == 404
