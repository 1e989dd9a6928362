# SPDX-License-Identifier: Apache-2.0
"""KServe's verb: `/v1/models/{m}:explain`, `instances` in, `explanations` out."""

import time
from typing import TYPE_CHECKING, Any

from cae_fast.serving import answers, asking, option_texts
from cae_fast.serving.catalog import ServedModel
from cae_fast.serving.jobs import Answer, Job, Refused
from cae_fast.serving.schemas import OPTIONS

if TYPE_CHECKING:
    from fastapi import APIRouter

    from cae_fast.serving.service import Service

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {
                        "instances": {
                            "type": "array",
                            "description": "images: {'b64': an image file}, or numbers [C][S][S] "
                            "in [-1, 1]; or {'image': one of these, 'target': class}",
                            "items": {},
                        },
                        "parameters": {"type": "object", "properties": OPTIONS},
                    },
                }
            }
        },
    }
}


def router(service: "Service") -> "APIRouter":
    """The routes of a service."""
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse, Response

    routes = APIRouter(tags=["v1"])

    @routes.get("/v1/models")
    async def models() -> JSONResponse:
        """The models on offer."""
        return JSONResponse({"models": [model.summary() for model in service.catalog.current]})

    @routes.get("/v1/models/{model}")
    async def model_status(model: str) -> JSONResponse:
        """One model."""
        return JSONResponse(service.catalog.get(model).summary())

    @routes.post("/v1/models/{model}:explain", openapi_extra=_BODY)
    async def explain(model: str, request: Request) -> Response:
        """Explain images; one that is refused is an explanation with an `error`."""
        service.batcher.admit()
        value = asking.parse_json(await asking.read_body(request, service.settings))
        served = service.catalog.get(model)  # after the body: a reload may come meanwhile
        if unknown := set(value) - {"instances", "parameters", "signature_name"}:
            raise Refused(400, "unknown_field", f"unknown field {sorted(unknown)[0][:64]!r}")
        instances = value.get("instances")
        most = service.settings.max_instances
        if not isinstance(instances, list) or not 1 <= len(instances) <= most:
            raise Refused(400, "bad_value", f"instances must be a list of 1 to {most} images")
        parameters = value.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise Refused(400, "bad_value", "parameters must be an object")
        asked = option_texts.read_options(parameters, served, service.settings)
        jobs = await service.in_thread(_jobs, instances, asked, served, service)
        good = [job for job in jobs if isinstance(job, Job)]
        found = iter(
            await service.explain(served, good, timeout_s=asked.timeout_s, request=request)
            if good
            else []
        )
        results = [next(found) if isinstance(job, Job) else job for job in jobs]
        body = await service.in_thread(_body, served, jobs, results)
        return Response(body, media_type="application/json")

    return routes


def _jobs(
    instances: list[Any], asked: option_texts.Asked, model: ServedModel, service: "Service"
) -> list[Job | Refused]:
    """A job for each instance, or why there is none."""
    start = time.perf_counter()
    jobs: list[Job | Refused] = []
    for instance in instances:
        try:
            image, target = instance, asked.target
            if isinstance(instance, dict) and "image" in instance:
                if set(instance) - {"image", "target"}:
                    raise Refused(400, "unknown_field", "an instance has 'image' and 'target'")
                image = instance["image"]
                if "target" in instance:
                    target = option_texts.read_target(instance["target"], model)
            pixels = asking.image_of_json(image, model, service.settings)
            options = asking.job_of(pixels, asked, code=True).options
            jobs.append(Job(pixels, target, options))
        except Refused as refused:
            jobs.append(refused)
    service.metrics.stage("decode", time.perf_counter() - start)
    return jobs


def _body(model: ServedModel, jobs: list[Job | Refused], results: list[Answer | Refused]) -> bytes:
    explanations: list[Any] = []
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Answer) and isinstance(job, Job):
            explanations.append(answers.result_json(model, job, result))
        elif isinstance(result, Refused):
            said = {"code": result.code, "message": result.message, "status": result.status}
            explanations.append({"error": said})
    return answers.dumps({"explanations": explanations})
