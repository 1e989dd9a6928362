# SPDX-License-Identifier: Apache-2.0
"""`/explain`, `/models/...`: what the page and `cf.Client` use."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_fast.serving import answers, asking, option_texts
from cae_fast.serving.catalog import ServedModel
from cae_fast.serving.jobs import Answer, Job, Refused
from cae_fast.serving.schemas import EXPLAIN, answer_schema

if TYPE_CHECKING:
    from fastapi import APIRouter

    from cae_fast.serving.service import Service

FORMATS = ("json", "npz", "raw", "html", "ndjson")
#: Content type of an image as raw numbers, little-endian [C, S, S] in [-1, 1].
FLOATS = "application/x-float32"
#: Larger files are decoded, and larger pictures encoded, in a thread. Small files may hold many
#: pixels, so both count.
_SMALL_FILE_BYTES = 4096
_SMALL_PICTURE = 256 * 256
_SMALL_PIXELS = 64 * 64
_FRAMES_PER_LINE = 8


def router(service: "Service") -> "APIRouter":
    """The routes of a service."""
    from fastapi import APIRouter, Request
    from fastapi.responses import Response, StreamingResponse

    routes = APIRouter(tags=["explain"])

    @routes.post("/explain", openapi_extra=EXPLAIN, responses=answer_schema())
    async def explain(request: Request) -> Response:
        """Explain one image: by which change of it the classifier would change its mind."""
        start = time.perf_counter()
        service.batcher.admit()
        given, data = await _question(request, service)
        model = service.catalog.get(given.get("model") or None)
        kind = given.get("format") or "json"
        if kind not in FORMATS:
            raise Refused(
                400, "bad_value", f"format must be one of {', '.join(FORMATS)}, got {kind!r:.80}"
            )
        asked = option_texts.read_options(
            given, model, service.settings, others=("model", "format", "name")
        )
        if request.headers.get("content-type") == FLOATS:
            image = asking.image_of_floats(data, model)
        else:
            image = await decoded(service, data, model)
        if kind == "ndjson":
            job = asking.job_of(image, asked, frames=0, code=True)
        else:
            job = asking.job_of(image, asked, code=kind in ("json", "npz", "html"))
        (answer,) = await service.explain(model, [job], timeout_s=asked.timeout_s, request=request)
        if isinstance(answer, Refused):
            raise answer
        encoding = time.perf_counter()
        headers = {"X-Model": model.name}
        if kind == "raw":
            body, said = answers.raw_map(answer)
            response = Response(body, headers=headers | said, media_type="application/octet-stream")
        elif kind == "npz":
            body = await service.in_thread(answers.npz_bytes, model, job, answer)
            response = Response(body, headers=headers, media_type="application/zip")
        elif kind == "html":
            name = (given.get("name") or "image")[:200]
            body = await service.in_thread(_report, model, job, answer, name)
            headers["Content-Security-Policy"] = (
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                "script-src 'unsafe-inline'; sandbox allow-scripts"
            )
            headers["Content-Disposition"] = 'attachment; filename="explanation.html"'
            response = Response(body, headers=headers, media_type="text/html; charset=utf-8")
        else:
            value = await _as_json(service, model, job, answer)
            value = {"request_id": request.state.request_id, **value}
            value["seconds"]["total"] = round(time.perf_counter() - start, 6)
            if kind == "ndjson":
                lines = _lines(service, model, job, answer, asked, value)
                return StreamingResponse(lines, headers=headers, media_type="application/x-ndjson")
            response = Response(
                answers.dumps(value), headers=headers, media_type="application/json"
            )
        service.metrics.stage("encode", time.perf_counter() - encoding)
        return response

    @routes.get("/models/{model}/manifold")
    async def manifold(model: str) -> Response:
        """The codes of a model's bank in a plane: at most 2000 points [x, y, label]."""
        served = service.catalog.get(model)
        value = {
            "points": served.info["points"],
            "class_names": served.class_names,
            "axes": "first two principal components",
            "explained": served.info["explained"],
        }
        return Response(answers.dumps(answers.to_plain(value)), media_type="application/json")

    @routes.get("/models/{model}/samples/{index}")
    async def sample(model: str, index: str) -> Response:
        """A sample image of a model, as PNG."""
        served = service.catalog.get(model)
        if not (index.isascii() and index.isdecimal() and len(index) < 6):
            raise Refused(400, "bad_value", "a sample is asked for by its number, from 0")
        if int(index) >= len(served.samples):
            raise Refused(404, "unknown_sample", f"there are {len(served.samples)} samples")
        try:
            png = await service.in_thread(_sample_png, served, int(index))
        except (OSError, ValueError):
            raise Refused(404, "unknown_sample", "this sample cannot be read") from None
        return Response(png, media_type="image/png")

    return routes


async def _question(request: Any, service: "Service") -> tuple[dict[str, str], bytes]:
    """Options and the image's bytes: of a form, or of a query and a body that is the image."""
    body = await asking.read_body(request, service.settings)
    query = request.query_params.multi_items()
    given: dict[str, str] = {}
    for name, value in query:
        if name in given:
            raise Refused(400, "bad_value", f"{name[:64]!r} is given twice")
        given[name] = value
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        fields, files = asking.parse_multipart(body, content_type)
        if unknown := set(files) - {"image"}:
            raise Refused(400, "unknown_field", f"unknown file {sorted(unknown)[0][:64]!r}")
        if twice := set(fields) & set(given):
            raise Refused(400, "bad_value", f"{sorted(twice)[0][:64]!r} is given twice")
        if "image" not in files:
            raise Refused(400, "no_image", "the form has no file 'image'")
        return given | fields, files["image"]
    if kind.startswith("image/") or kind in ("application/octet-stream", FLOATS):
        return given, body
    raise Refused(
        415,
        "bad_content_type",
        "send multipart/form-data with the file 'image', or the image itself as image/*",
    )


async def decoded(service: "Service", data: bytes, model: ServedModel) -> Any:
    """An image file as [C, S, S]; others wait for it that could be explained together."""
    start = time.perf_counter()
    service.batcher.arriving += 1
    try:
        if len(data) <= _SMALL_FILE_BYTES:
            with contextlib.suppress(Refused):  # damaged, or larger than that
                most = min(_SMALL_PICTURE, service.settings.max_pixels)
                return asking.image_of(data, model, max_pixels=most)
        return await service.in_thread(
            asking.image_of, data, model, max_pixels=service.settings.max_pixels
        )
    finally:
        service.batcher.arriving -= 1
        service.metrics.stage("decode", time.perf_counter() - start)


async def _as_json(
    service: "Service", model: ServedModel, job: Job, answer: Answer
) -> dict[str, Any]:
    if model.image_size**2 <= _SMALL_PIXELS and not job.options.frames:
        return answers.result_json(model, job, answer)
    value: dict[str, Any] = await service.in_thread(answers.result_json, model, job, answer)
    return value


def _report(model: ServedModel, job: Job, answer: Answer, name: str) -> bytes:
    return answers.report_html(model, job, answer, name=name)


def _sample_png(model: ServedModel, index: int) -> bytes:
    """A sample at its own size, at most 512 pixels."""
    from PIL import Image

    from cae_fast.images import load_original
    from cae_fast.pictures import png_bytes

    pixels = load_original(model.samples[index])
    picture = Image.fromarray(pixels)
    picture.thumbnail((512, 512))
    shown = np.asarray(picture)
    return png_bytes(np.ascontiguousarray(shown[..., 0]) if model.in_channels == 1 else shown)


async def _lines(
    service: "Service",
    model: ServedModel,
    job: Job,
    answer: Answer,
    asked: option_texts.Asked,
    first: dict[str, Any],
) -> AsyncIterator[bytes]:
    """The result at once, then lines of frames as they are decoded."""
    yield answers.dumps(first) + b"\n"
    count = asked.options.frames
    if str(answer.fields["status"]) in ("non_finite", "rejected"):
        count = 0
    rows = tuple(int(row) for row in np.atleast_1d(answer.fields["exemplar"]) if row >= 0)
    second = tuple(tuple(map(float, code)) for code in answer.fields["second_path"])
    for begin in range(0, count, _FRAMES_PER_LINE):
        part = asking.job_of(
            job.image,
            asked,
            kind="frames",
            code=False,
            frame_from=begin,
            frame_to=min(begin + _FRAMES_PER_LINE, count),
        )
        part = Job(part.image, part.target, part.options, rows, second)
        try:
            (frames,) = await service.explain(model, [part], timeout_s=asked.timeout_s)
            if isinstance(frames, Refused):
                raise frames
        except Refused as refused:
            said = {"code": refused.code, "message": refused.message}
            yield answers.dumps({"error": said}) + b"\n"
            return
        frames.fields["frame_t"] = _positions(part)
        value = await service.in_thread(answers.frames_json, frames.fields)
        yield answers.dumps({"frames": answers.to_plain(value)}) + b"\n"


def _positions(part: Job) -> Any:
    from cae_fast.serving.core import frame_positions

    return frame_positions(part.options)[part.options.frame_from : part.options.frame_to]
