# SPDX-License-Identifier: Apache-2.0
"""From a request's bytes to jobs: bodies within limits, forms, JSON, images."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from typing import Any

import numpy as np

from cae_fast.arrays import Float32
from cae_fast.errors import ImageDecodeError
from cae_fast.images import load_images
from cae_fast.serving.catalog import ServedModel
from cae_fast.serving.jobs import Job, Refused
from cae_fast.serving.option_texts import Asked
from cae_fast.serving.settings import Settings

_MOST_PARTS = 32
_MOST_FIELD_BYTES = 4096
_DEEPEST_JSON = 32


async def read_body(request: Any, settings: Settings) -> bytes:
    """The body of a request (a starlette `Request`).

    Raises:
        Refused: 413: too large; 408: too slow; 415: compressed; 499: the client is gone.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(415, "compressed", "compressed bodies are not taken; send it as it is")
    limit = settings.max_body_bytes
    large = Refused(413, "too_large", f"the body is larger than {limit} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused(499, "disconnected", "the client is gone")
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise large
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise Refused(
            408, "too_slow", f"the body did not come within {settings.body_timeout_s:g} s"
        ) from None


def parse_json(body: bytes) -> dict[str, Any]:
    """An object of strict JSON: UTF-8, no NaN, not nested deeper than 32.

    Raises:
        Refused: 400.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refused(400, "bad_json", "the body is not UTF-8") from None
    except RecursionError:
        raise Refused(400, "bad_json", "the body is nested too deeply") from None
    except ValueError as error:
        said = str(error) if isinstance(error, json.JSONDecodeError) else "a number is too long"
        if isinstance(error, _Constant):
            said = "NaN and Infinity are not JSON"
        raise Refused(400, "bad_json", f"the body is no JSON: {said}") from None
    if not isinstance(value, dict):
        raise Refused(400, "bad_json", "the body must be a JSON object")
    if _deeper(value, _DEEPEST_JSON):
        raise Refused(400, "bad_json", "the body is nested too deeply")
    return value


class _Constant(ValueError):
    pass


def _no_constant(name: str) -> Any:
    raise _Constant(name)


def _deeper(value: Any, levels: int) -> bool:
    """Whether a tree is nested deeper; of lists of numbers only the first is followed down."""
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    items = value.values() if isinstance(value, dict) else value
    return any(_deeper(item, levels - 1) for item in items if isinstance(item, dict | list))


_DISPOSITION = re.compile(rb'(?:^|;)\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


def parse_multipart(body: bytes, content_type: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """Fields and files of a form; nothing is written to disk.

    Raises:
        Refused: 400: malformed; 413: too many parts, or a field too long.
    """
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary or len(boundary) > 256:
        raise Refused(400, "bad_form", "the form's Content-Type names no boundary")
    parts: list[tuple[dict[bytes, bytes], list[bytes]]] = []
    name, value = bytearray(), bytearray()

    def begin() -> None:
        if len(parts) >= _MOST_PARTS:
            raise Refused(413, "too_many_parts", f"the form has more than {_MOST_PARTS} parts")
        parts.append(({}, []))

    def header_field(data: bytes, start: int, end: int) -> None:
        name.extend(data[start:end])

    def header_value(data: bytes, start: int, end: int) -> None:
        value.extend(data[start:end])

    def header_end() -> None:
        parts[-1][0][bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def data(chunk: bytes, start: int, end: int) -> None:
        parts[-1][1].append(chunk[start:end])

    finished = False

    def end() -> None:
        nonlocal finished
        finished = True

    calls: Any = {
        "on_part_begin": begin,
        "on_header_field": header_field,
        "on_header_value": header_value,
        "on_header_end": header_end,
        "on_part_data": data,
        "on_end": end,
    }
    try:
        parser = MultipartParser(boundary, calls)
        parser.write(body)
        parser.finalize()
    except MultipartParseError:
        raise Refused(400, "bad_form", "the form is malformed") from None
    if not finished:
        raise Refused(400, "bad_form", "the form ends in the middle")
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for headers, chunks in parts:
        found = dict(_DISPOSITION.findall(headers.get(b"content-disposition", b"")))
        key = found.get(b"name", b"").decode("utf-8", "replace")
        if not key:
            raise Refused(400, "bad_form", "a part of the form has no name")
        if key in fields or key in files:
            raise Refused(400, "bad_form", f"the form has {key!r} twice")
        content = b"".join(chunks)
        if b"filename" in found or key == "image":
            files[key] = content
        elif len(content) > _MOST_FIELD_BYTES:
            raise Refused(413, "too_large", f"the field {key!r} is too long")
        else:
            try:
                fields[key] = content.decode("utf-8")
            except UnicodeDecodeError:
                raise Refused(400, "bad_form", f"the field {key!r} is not UTF-8") from None
    return fields, files


def image_of(data: Any, model: ServedModel, *, max_pixels: int) -> Float32:
    """An image file's bytes, or nested lists of numbers, as [C, S, S].

    Lists are [H, W] or [C, H, W] in [-1, 1] of the model's own size. Addresses are never fetched.

    Raises:
        Refused: 400.
    """
    try:
        if isinstance(data, bytes):
            if not data:
                raise Refused(400, "no_image", "the image is empty")
            images = load_images(
                data,
                size=model.image_size,
                channels=model.in_channels,
                max_pixels=max_pixels,
            )
            first: Float32 = images[0]
            return first
        return _listed(data, model)
    except ImageDecodeError as error:
        raise Refused(400, "bad_image", str(error)) from None
    except ValueError as error:
        raise Refused(400, "bad_image", str(error)) from None


def image_of_floats(data: bytes, model: ServedModel) -> Float32:
    """Little-endian float32 numbers [C, S, S] in [-1, 1].

    Raises:
        Refused: 400: another number of them.
    """
    if len(data) != model.image_bytes:
        raise Refused(
            400,
            "bad_image",
            f"an image must be float32 {list(model.image_shape)}, {model.image_bytes} bytes, got "
            f"{len(data)}",
        )
    return np.frombuffer(data, "<f4").reshape(model.image_shape).astype(np.float32)


def _listed(data: Any, model: ServedModel) -> Float32:
    array = np.array(data, dtype=np.float64)
    if array.ndim == 2:
        array = array[None]
    if array.shape != model.image_shape:
        raise Refused(
            400,
            "bad_image",
            f"an image must be numbers {list(model.image_shape)}, got {list(array.shape)}",
        )
    return array.astype(np.float32)


def image_of_json(value: Any, model: ServedModel, settings: Settings) -> Float32:
    """An image in JSON: `{"b64": "..."}`, an image file in base64; or nested lists.

    Raises:
        Refused: 400.
    """
    if isinstance(value, dict):
        if set(value) != {"b64"} or not isinstance(value["b64"], str):
            raise Refused(400, "bad_image", "an image is {'b64': '...'} or nested lists of numbers")
        try:
            data = base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, "bad_image", "'b64' is no base64") from None
        return image_of(data, model, max_pixels=settings.max_pixels)
    if not isinstance(value, list):
        raise Refused(400, "bad_image", "an image is {'b64': '...'} or nested lists of numbers")
    try:
        return image_of(value, model, max_pixels=settings.max_pixels)
    except (TypeError, OverflowError):
        raise Refused(400, "bad_image", "an image holds something else than numbers") from None


def job_of(image: Float32, asked: Asked, **changes: Any) -> Job:
    """A job with some options changed."""
    import dataclasses

    options = dataclasses.replace(asked.options, **changes) if changes else asked.options
    return Job(image, asked.target, options)
