# SPDX-License-Identifier: Apache-2.0
"""Tensors of the Open Inference Protocol v2: JSON and its binary data extension."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.serving.asking import parse_json
from cae_fast.serving.jobs import Refused

_DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_LARGEST = 2**31
Array = npt.NDArray[Any]


@dataclass
class InferRequest:
    """A request as it was sent.

    Attributes:
        id: Of the client, or None.
        inputs: Arrays by name; BYTES are objects of bytes.
        datatypes: Of the inputs.
        parameters: Of the request.
        outputs: Names asked for -> whether as binary data; empty: all.
        binary: Whether outputs are binary where nothing else is said.
    """

    id: str | None
    inputs: dict[str, Array]
    datatypes: dict[str, str]
    parameters: dict[str, Any]
    outputs: dict[str, bool]
    binary: bool
    given: set[str] = field(default_factory=set)


def parse(body: bytes, header_length: str | None) -> InferRequest:
    """Reads an inference request.

    Args:
        body: JSON, and behind it the binary data of the inputs.
        header_length: Bytes of JSON (`Inference-Header-Content-Length`), None: all.

    Raises:
        Refused: 400.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
            raise _bad("Inference-Header-Content-Length must be a number of bytes")
        length = int(header_length)
        if length > len(body):
            raise _bad("Inference-Header-Content-Length is larger than the body")
    value = parse_json(body[:length])
    parameters = _object(value, "parameters")
    request = InferRequest(
        None if value.get("id") is None else str(value["id"])[:256],
        {},
        {},
        {k: v for k, v in parameters.items() if k != "binary_data_output"},
        {},
        parameters.get("binary_data_output") is True,
    )
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= 8:
        raise _bad("inputs must be a list of 1 to 8 tensors")
    at = length
    for tensor in inputs:
        at = _take(request, tensor, body, at)
    if at != len(body):
        raise _bad(f"{len(body) - at} bytes of binary data belong to no input")
    outputs = value.get("outputs") or []
    if not isinstance(outputs, list):
        raise _bad("outputs must be a list of objects with a name")
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise _bad("an output must be an object with a name")
        asked = _object(output, "parameters")
        if "classification" in asked or "shared_memory_region" in asked:
            raise _bad("classification and shared memory are not served")
        request.outputs[output["name"]] = asked.get("binary_data", request.binary) is True
    return request


def _take(request: InferRequest, tensor: Any, body: bytes, at: int) -> int:
    """Reads one input; returns where the next one's binary data begin."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise _bad("an input must be an object with name, shape, datatype and data")
    name, datatype, shape = tensor["name"][:64], tensor.get("datatype"), tensor.get("shape")
    if name in request.inputs:
        raise _bad(f"input {name!r} is given twice")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 6 or not all(map(_is_size, shape)):
        raise _bad(f"input {name!r}: shape must be 1 to 6 whole numbers")
    count = math.prod(shape)
    if not isinstance(datatype, str) or (datatype not in _DTYPES and datatype != "BYTES"):
        raise _bad(f"input {name!r}: unknown datatype {str(datatype)[:32]!r}")
    parameters = _object(tensor, "parameters")
    if "shared_memory_region" in parameters:
        raise _bad("shared memory is not served")
    size = parameters.get("binary_data_size")
    if size is None:
        array = _listed(tensor.get("data"), name, datatype, count)
    else:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - at:
            raise _bad(f"input {name!r}: binary_data_size does not fit the body")
        array = _binary(body[at : at + size], name, datatype, count)
        at += size
    request.inputs[name] = array.reshape(shape)
    request.datatypes[name] = datatype
    return at


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _listed(data: Any, name: str, datatype: str, count: int) -> Array:
    """A tensor of JSON lists, flat or nested."""
    if not isinstance(data, list):
        raise _bad(f"input {name!r} has no data")
    flat: list[Any] = data
    if datatype == "BYTES":
        while flat and isinstance(flat[0], list):
            flat = [item for row in flat if isinstance(row, list) for item in row]
        if len(flat) != count or not all(isinstance(item, str) for item in flat):
            raise _bad(f"input {name!r} must hold {count} texts")
        return np.array([item.encode() for item in flat], dtype=object)
    while flat and isinstance(flat[0], list):
        width = len(flat[0])
        if not all(isinstance(row, list) and len(row) == width for row in flat):
            raise _bad(f"input {name!r}: its lists differ in length")
        flat = [item for row in flat for item in row]
    # Before numpy sees them: one long text would make all items as long.
    if not all(isinstance(item, bool | int | float) for item in flat):
        raise _bad(f"input {name!r} holds something else than numbers of {datatype}")
    if len(flat) != count:
        raise _bad(f"input {name!r} must hold {count} numbers, got {len(flat)}")
    try:
        array = np.array(flat)
        if array.dtype.kind not in "biuf" or (datatype != "BOOL" and array.dtype.kind == "b"):
            raise ValueError
        wanted = np.dtype(_DTYPES[datatype])
        if wanted.kind in "iu" and not _fits(array, wanted):
            raise ValueError
        return array.astype(wanted).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        raise _bad(f"input {name!r} holds something else than numbers of {datatype}") from None


def _fits(array: Array, wanted: np.dtype[Any]) -> bool:
    info = np.iinfo(wanted)
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    return whole and (not array.size or (array.min() >= info.min and array.max() <= info.max))


def _binary(data: bytes, name: str, datatype: str, count: int) -> Array:
    """A tensor of raw little-endian bytes; BYTES are each preceded by its length."""
    if datatype != "BYTES":
        dtype = np.dtype(_DTYPES[datatype])
        if len(data) != count * dtype.itemsize:
            raise _bad(
                f"input {name!r} needs {count * dtype.itemsize} bytes of {datatype}, got "
                f"{len(data)}"
            )
        return np.frombuffer(data, dtype)
    items: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(items) < count:
        length = int.from_bytes(data[at : at + 4], "little")
        items.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if len(items) != count or at != len(data):
        raise _bad(f"input {name!r}: its binary data are not {count} texts")
    result = np.empty(count, dtype=object)
    result[:] = items
    return result


def respond(
    model: str, version: str, request: InferRequest, outputs: dict[str, tuple[str, Array]]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an answer.

    Args:
        model: Its name.
        version: Its version.
        request: Says which outputs are wanted, and how.
        outputs: Name -> (datatype, array); BYTES are arrays of str.

    Raises:
        Refused: 400: an output that there is not.
    """
    wanted = request.outputs or dict.fromkeys(outputs, request.binary)
    listed: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in wanted.items():
        if name not in outputs:
            raise _bad(f"unknown output {name[:64]!r}; there are {', '.join(outputs)}")
        datatype, array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            data = _as_bytes(datatype, array)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = _as_list(array)
        listed.append(entry)
    value: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": listed}
    if request.id is not None:
        value["id"] = request.id
    text = json.dumps(value, allow_nan=False).encode()
    if not tail:
        return text, {"Content-Type": "application/json"}
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(text)),
    }
    return b"".join([text, *tail]), headers


def _as_bytes(datatype: str, array: Array) -> bytes:
    if datatype == "BYTES":
        items = [str(item).encode() for item in array.reshape(-1)]
        return b"".join(len(item).to_bytes(4, "little") + item for item in items)
    return np.ascontiguousarray(array, dtype=_DTYPES[datatype]).tobytes()


def _as_list(array: Array) -> list[Any]:
    flat = array.reshape(-1)
    values: list[Any] = flat.tolist()
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return [value if math.isfinite(value) else None for value in values]
    return values


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name) or {}
    if not isinstance(found, dict):
        raise _bad(f"{name} must be an object")
    return found


def _bad(message: str) -> Refused:
    return Refused(400, "bad_tensor", message)
