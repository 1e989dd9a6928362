# SPDX-License-Identifier: Apache-2.0
"""External data of ONNX files, looked at before any runtime opens the model.

The few fields needed are walked here (protocol buffers' wire format), so neither `onnx` nor trust
in the runtime is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import ClassifierError

# Message type -> {field number: type of the message in it}; only what leads to tensors
# (onnx.proto).
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 100


def external_files(path: Path) -> tuple[Path, ...]:
    """The external data files of an ONNX model, each inside the model's folder.

    Args:
        path: The `.onnx` file.

    Returns:
        Existing files, sorted, each once.

    Raises:
        ClassifierError: The file is no ONNX file, is truncated, or names a file outside its folder
            or one that is missing.
    """
    data = memoryview(path.read_bytes())
    try:
        if not any(number == 7 for number, _ in _walk(data)):
            raise ClassifierError(f"{path}: not an ONNX file (no graph in it)")
        locations = set(_locations(data, "model", 0))
    except _Malformed:
        raise ClassifierError(f"{path}: not an ONNX file, or a damaged or truncated one") from None
    folder = Path(os.path.realpath(path)).parent  # Path.resolve raises for links in a circle
    files = set()
    for location in locations:
        if not location or "\0" in location:
            raise ClassifierError(f"{path}: names external data {location!r}, expected a file name")
        file = Path(os.path.realpath(folder / location))
        if not file.is_relative_to(folder):
            raise ClassifierError(
                f"{path}: names external data {location!r}, outside the model's folder: refused"
            )
        if not file.is_file():
            raise ClassifierError(f"{path}: its external data {location!r} is missing")
        files.add(file)
    return tuple(sorted(files))


class _Malformed(Exception):
    """The bytes are not protocol buffers."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed


def _walk(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Fields of one message: (number, bytes).

    Fields that are not length-delimited yield no bytes.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 0:
            _, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
        elif wire not in (1, 5):
            raise _Malformed
        if number == 0 or at + length > len(data):
            raise _Malformed
        yield number, data[at : at + length if wire == 2 else at]
        at += length


def _locations(data: memoryview, message: str, depth: int) -> Iterator[str]:
    """Every `location` of external data below one message."""
    if depth > _DEEPEST:
        raise _Malformed
    for number, content in _walk(data):
        kind = _FIELDS[message].get(number)
        if kind == "entry":
            pair = dict(_walk(content))
            if bytes(pair.get(1, b"")) == b"location":
                yield bytes(pair.get(2, b"")).decode("utf-8", "replace")
        elif kind is not None:
            yield from _locations(content, kind, depth + 1)
