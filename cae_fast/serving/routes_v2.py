# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol v2, as `tritonclient` and others speak it.

Input IMAGE is FP32 [N, C, S, S] in [-1, 1], UINT8 [N, S, S, C], or BYTES [N] (image files). TARGET
is BYTES [N] (class names, "any", or empty) or INT64 [N] (-1: the default); options are parameters.
Every field of an explanation is an output.
"""

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_fast.serving import asking, option_texts, tensors
from cae_fast.serving.catalog import ServedModel
from cae_fast.serving.jobs import Answer, Job, Refused

if TYPE_CHECKING:
    from fastapi import APIRouter

    from cae_fast.serving.service import Service

PLATFORM = "cae_fast"
#: Output -> (datatype, shape behind N by letters, field of the explanation).
OUTPUTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "STATUS": ("BYTES", (), "status"),
    "SALIENCY": ("FP32", ("S", "S"), "saliency"),
    "COUNTERFACTUAL": ("FP32", ("C", "S", "S"), "counterfactual"),
    "RECONSTRUCTION": ("FP32", ("C", "S", "S"), "reconstruction"),
    "T_FLIP": ("FP32", (), "t_flip"),
    "BRACKET": ("FP32", ("2",), "bracket"),
    "SOURCE_CLASS": ("INT64", (), "source_class"),
    "TARGET_CLASS": ("INT64", (), "target_class"),
    "REACHED_CLASS": ("INT64", (), "reached_class"),
    "RECONSTRUCTED_CLASS": ("INT64", (), "reconstructed_class"),
    "SEARCHED_AGAIN": ("BOOL", (), "searched_again"),
    "LOGITS_SOURCE": ("FP32", ("K",), "logits_source"),
    "LOGITS_COUNTERFACTUAL": ("FP32", ("K",), "logits_counterfactual"),
    "EVALUATIONS": ("INT64", (), "evaluations"),
    "EXEMPLAR": ("INT64", ("k",), "exemplar"),
}
_EXTENSIONS = ["binary_tensor_data", "model_repository", "model_configuration", "statistics"]


def router(service: "Service") -> "APIRouter":
    """The routes of a service."""
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse, Response

    routes = APIRouter(tags=["v2"])

    @routes.get("/v2")
    async def server() -> JSONResponse:
        """Name, version, extensions."""
        from cae_fast.environment import package_version

        about = {"name": PLATFORM, "version": package_version("cae-fast")}
        return JSONResponse(about | {"extensions": _EXTENSIONS})

    @routes.get("/v2/models/stats")
    async def all_statistics() -> JSONResponse:
        """Counts of every model."""
        current = service.catalog.current
        return JSONResponse({"model_stats": [_statistics(service, model) for model in current]})

    @routes.get("/v2/models/{model}/versions/{version}")
    @routes.get("/v2/models/{model}")
    async def metadata(model: str, version: str = "") -> JSONResponse:
        """Inputs and outputs of a model."""
        return JSONResponse(_metadata(_version(service, model, version)))

    @routes.get("/v2/models/{model}/versions/{version}/ready")
    @routes.get("/v2/models/{model}/ready")
    async def model_ready(model: str, version: str = "") -> Response:
        """200 when a model explains."""
        _version(service, model, version)
        if why := service.not_ready():
            raise Refused(503, "not_ready", why, retry_after_s=1)
        return Response()

    @routes.get("/v2/models/{model}/versions/{version}/config")
    @routes.get("/v2/models/{model}/config")
    async def config(model: str, version: str = "") -> JSONResponse:
        """A model's configuration as Triton words it."""
        served = _version(service, model, version)
        return JSONResponse(_config(served, service.settings.max_instances))

    @routes.get("/v2/models/{model}/versions/{version}/stats")
    @routes.get("/v2/models/{model}/stats")
    async def statistics(model: str, version: str = "") -> JSONResponse:
        """Counts of a model."""
        served = _version(service, model, version)
        return JSONResponse({"model_stats": [_statistics(service, served)]})

    @routes.post("/v2/models/{model}/versions/{version}/infer")
    @routes.post("/v2/models/{model}/infer")
    async def infer(request: Request, model: str, version: str = "") -> Response:
        """Explain a batch of images."""
        service.batcher.admit()
        body = await asking.read_body(request, service.settings)
        served = _version(service, model, version)  # after the body: a reload may come meanwhile
        sent = tensors.parse(body, request.headers.get("inference-header-content-length"))
        asked = option_texts.read_options(sent.parameters, served, service.settings)
        if asked.options.frames:
            raise Refused(400, "bad_value", "frames are not served here; use /explain")
        if unknown := set(sent.outputs) - set(OUTPUTS):
            raise Refused(400, "bad_tensor", f"unknown output {sorted(unknown)[0][:64]!r}")
        jobs = await service.in_thread(_jobs, sent, asked, served, service)
        found = await service.explain(served, jobs, timeout_s=asked.timeout_s, request=request)
        for answer in found:
            if isinstance(answer, Refused):
                raise answer
        encoding = time.perf_counter()
        good = [answer for answer in found if isinstance(answer, Answer)]
        content, headers = await service.in_thread(_body, served, sent, good)
        service.metrics.stage("encode", time.perf_counter() - encoding)
        return Response(content, headers=headers)

    @routes.post("/v2/repository/index")
    async def index() -> JSONResponse:
        """Every model and whether it is served."""
        current = {model.name: model for model in service.catalog.current}
        return JSONResponse(
            [
                {
                    "name": name,
                    "version": str(current[name].version) if name in current else "",
                    "state": "READY" if name in current else "UNAVAILABLE",
                    "reason": "",
                }
                for name in service.catalog.names
            ]
        )

    @routes.post("/v2/repository/models/{model}/load")
    async def load(model: str, request: Request) -> Response:
        """Load a model again from its files; the version before stays where that fails."""
        await _may_reload(service, request)
        await service.catalog.load(model)
        return Response()

    @routes.post("/v2/repository/models/{model}/unload")
    async def unload(model: str, request: Request) -> Response:
        """Serve a model no more."""
        await _may_reload(service, request)
        await service.catalog.unload(model)
        return Response()

    @routes.get("/v2/{kind}sharedmemory/status")
    @routes.get("/v2/{kind}sharedmemory/region/{region}/status")
    async def shared_memory(kind: str, region: str = "") -> JSONResponse:
        """No region is ever registered."""
        return JSONResponse([])

    return routes


async def _may_reload(service: "Service", request: Any) -> None:
    if not service.settings.allow_reload:
        raise Refused(403, "forbidden", "reloading is not allowed here: --allow-reload")
    body = await asking.read_body(request, service.settings)
    said = asking.parse_json(body) if body else {}
    parameters = said.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"unload_dependents"}:
        raise Refused(400, "bad_value", "models are loaded from the service's own files only")


def _version(service: "Service", name: str, version: str) -> ServedModel:
    """A model; a version that is named must be the one that is served."""
    served = service.catalog.get(name)
    if version and version != str(served.version):
        raise Refused(404, "unknown_version", f"model {name} is served in version {served.version}")
    return served


def _lengths(model: ServedModel, letters: tuple[str, ...]) -> list[int]:
    known = {
        "C": model.in_channels,
        "S": model.image_size,
        "K": model.num_classes,
        "k": int(model.info["k"]),
        "2": 2,
    }
    return [known[letter] for letter in letters]


def _metadata(model: ServedModel) -> dict[str, Any]:
    channels, side = model.in_channels, model.image_size
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": PLATFORM,
        "inputs": [
            {"name": "IMAGE", "datatype": "FP32", "shape": [-1, channels, side, side]},
            {"name": "TARGET", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, *_lengths(model, letters)]}
            for name, (datatype, letters, _) in OUTPUTS.items()
        ],
    }


def _config(model: ServedModel, max_batch: int) -> dict[str, Any]:
    def words(name: str, datatype: str, dims: list[int]) -> dict[str, Any]:
        kind = "STRING" if datatype == "BYTES" else datatype
        return {"name": name, "data_type": f"TYPE_{kind}", "dims": dims or [1]}

    channels, side = model.in_channels, model.image_size
    image = words("IMAGE", "FP32", [channels, side, side])
    target = words("TARGET", "BYTES", [1])
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": max_batch,
        "input": [image, {**target, "optional": True}],
        "output": [
            words(name, datatype, _lengths(model, letters))
            for name, (datatype, letters, _) in OUTPUTS.items()
        ],
    }


def _statistics(service: "Service", model: ServedModel) -> dict[str, Any]:
    images, batches, failures, seconds = service.metrics.totals.get(model.name, (0, 0, 0, 0.0))
    spent = {"count": images, "ns": round(seconds * 1e9)}
    return {
        "name": model.name,
        "version": str(model.version),
        "inference_count": images,
        "execution_count": batches,
        "inference_stats": {"compute_infer": spent, "fail": {"count": failures, "ns": 0}},
    }


def _jobs(
    sent: tensors.InferRequest, asked: option_texts.Asked, model: ServedModel, service: "Service"
) -> list[Job]:
    start = time.perf_counter()
    if unknown := set(sent.inputs) - {"IMAGE", "TARGET"}:
        raise Refused(400, "bad_tensor", f"unknown input {sorted(unknown)[0][:64]!r}")
    if "IMAGE" not in sent.inputs:
        raise Refused(400, "bad_tensor", "there is no input 'IMAGE'")
    images = _images(sent.inputs["IMAGE"], sent.datatypes["IMAGE"], model, service)
    most = service.settings.max_instances
    if not 1 <= len(images) <= most:
        raise Refused(400, "bad_tensor", f"IMAGE must hold 1 to {most} images, got {len(images)}")
    targets: list[Any] = [asked.target] * len(images)
    if "TARGET" in sent.inputs:
        targets = _targets(sent.inputs["TARGET"], sent.datatypes["TARGET"], len(images), model)
    service.metrics.stage("decode", time.perf_counter() - start)
    return [
        Job(image, target, asked.options) for image, target in zip(images, targets, strict=True)
    ]


def _images(array: Any, datatype: str, model: ServedModel, service: "Service") -> Any:
    """Images [N, C, S, S]; those with NaN or out of range are the engine's to reject, alone."""
    channels, side = model.in_channels, model.image_size
    if datatype == "BYTES" and array.ndim in (1, 2):
        files = array.reshape(-1)[: service.settings.max_instances + 1]
        return [
            asking.image_of(data, model, max_pixels=service.settings.max_pixels) for data in files
        ]
    if datatype == "FP32" and array.ndim == 4 and array.shape[1:] == model.image_shape:
        return np.ascontiguousarray(array, dtype=np.float32)
    if datatype == "UINT8" and array.ndim == 4 and array.shape[1:] == (side, side, channels):
        scaled = array.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5)
        return np.ascontiguousarray(scaled - np.float32(1))
    raise Refused(
        400,
        "bad_tensor",
        f"IMAGE must be FP32 [N, {channels}, {side}, {side}], UINT8 [N, {side}, {side}, "
        f"{channels}] or BYTES [N], got {datatype} {list(array.shape)}",
    )


def _targets(array: Any, datatype: str, count: int, model: ServedModel) -> list[Any]:
    flat = array.reshape(-1)
    if len(flat) != count or datatype not in ("BYTES", "INT64", "INT32"):
        raise Refused(400, "bad_tensor", f"TARGET must be BYTES or INT64 [{count}]")
    if datatype == "BYTES":
        texts = [bytes(item).decode("utf-8", "replace") for item in flat]
        return [option_texts.read_target(text, model) for text in texts]
    return [None if value == -1 else option_texts.read_target(int(value), model) for value in flat]


def _body(
    model: ServedModel, sent: tensors.InferRequest, found: list[Answer]
) -> tuple[bytes, dict[str, str]]:
    return tensors.respond(model.name, str(model.version), sent, _outputs(model, found))


def _outputs(model: ServedModel, found: list[Answer]) -> dict[str, tuple[str, Any]]:
    """Every output as an array with a leading axis of images."""
    outputs: dict[str, tuple[str, Any]] = {}
    for name, (datatype, _, field) in OUTPUTS.items():
        values = np.stack([np.asarray(answer.fields[field]) for answer in found])
        if datatype == "FP32":
            values = values.astype(np.float32)
        outputs[name] = datatype, values
    return outputs
