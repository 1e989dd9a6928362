# SPDX-License-Identifier: Apache-2.0
"""What the OpenAPI document says of bodies that are read by hand."""

from __future__ import annotations

from typing import Any

from cae_fast.manifold.paths import DEFAULT_REACH, FARTHEST_REACH
from cae_fast.maps import MAP_KINDS

_CLASS = {
    "type": "object",
    "properties": {
        "index": {"type": "integer", "description": "-1: none, or any other"},
        "name": {"type": ["string", "null"]},
    },
}
_NUMBERS = {"type": "array", "items": {"type": ["number", "null"]}}
_ROWS = {"type": "array", "items": _NUMBERS}
_PNG = {"type": ["string", "null"], "contentEncoding": "base64", "contentMediaType": "image/png"}

OPTIONS: dict[str, Any] = {
    "target": {"type": "string", "description": "class name or index, or any; default: runner-up"},
    "path": {"type": "string", "enum": ["line"]},
    "tolerance": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1 / 256},
    "k": {"type": "integer", "minimum": 1, "description": "nearest exemplars averaged"},
    "reach": {
        "type": "number",
        "minimum": 1,
        "maximum": FARTHEST_REACH,
        "default": DEFAULT_REACH,
        "description": "length of the path over the distance to the exemplars",
    },
    "second_try": {"type": "boolean", "default": True, "description": "where a path says nothing"},
    "search": {"type": "string", "enum": ["bisection", "margin"]},
    "saliency": {"type": "string", "enum": list(MAP_KINDS), "description": "kind of map"},
    "min_probability": {"type": "number", "minimum": 0, "maximum": 1},
    "frames": {"type": "integer", "minimum": 0, "maximum": 64},
    "timeout_ms": {"type": "number", "minimum": 1},
}

_FORM: dict[str, Any] = {
    "model": {"type": "string", "description": "default: the first"},
    **OPTIONS,
    "format": {"type": "string", "enum": ["json", "npz", "raw", "html", "ndjson"]},
    "name": {"type": "string", "description": "of the image, for the report"},
}

EXPLAIN: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}, **_FORM},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in _FORM.items()
    ],
}

_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "request_id": {"type": "string"},
        "model": {"type": "string"},
        "status": {
            "type": "string",
            "enum": [
                *("flipped", "not_flipped", "already_target"),
                *("reconstruction_flips", "non_finite", "rejected"),
            ],
        },
        "status_text": {"type": "string"},
        "map": {"type": "string", "description": "what the saliency map shows"},
        "source_class": _CLASS,
        "target_class": _CLASS,
        "reached_class": _CLASS,
        "reconstructed_class": {**_CLASS, "description": "of the image decoded from its codes"},
        "second_path": {"type": "boolean", "description": "whether the first explained nothing"},
        "t_flip": {"type": ["number", "null"]},
        "bracket": _NUMBERS,
        "evaluations": {"type": "integer"},
        "class_names": {"type": "array", "items": {"type": "string"}},
        "probabilities_source": _NUMBERS,
        "probabilities_counterfactual": _NUMBERS,
        "path": {"type": "object", "properties": {"t": _NUMBERS, "probabilities": _ROWS}},
        "images": {
            "type": "object",
            "properties": {
                name: _PNG for name in ("image", "reconstruction", "counterfactual", "saliency")
            },
        },
        "frames": {
            "type": "object",
            "properties": {
                "t": _NUMBERS,
                "probabilities": _ROWS,
                "png": {"type": "array", "items": _PNG},
            },
        },
        "exemplar": {
            "type": "object",
            "properties": {
                "rows": {"type": "array", "items": {"type": "integer"}},
                "names": {"type": "array", "items": {"type": "string"}},
                "labels": {"type": "array", "items": {"type": "integer"}},
                "t": {"type": "number", "description": "where the path passes them, or 1"},
            },
        },
        "code": {
            "type": "object",
            "properties": {
                "image": _NUMBERS,
                "path": {**_ROWS, "description": "of the points in the field path"},
                "exemplar": _NUMBERS,
                "end": {**_NUMBERS, "description": "of the path, t = 1"},
            },
        },
        "seconds": {"type": "object"},
        "meta": {"type": "object"},
    },
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "request_id": {"type": "string"},
            },
        },
        "request_id": {"type": "string"},
    },
}


def answer_schema() -> dict[int | str, dict[str, Any]]:
    """Answers of `/explain`, by status."""
    said = {
        400: "the request is wrong",
        401: "no token",
        404: "no such model",
        408: "the body came too slowly",
        413: "too large",
        415: "of another kind",
        503: "too much to do, or starting",
        504: "too late",
    }
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in said.items()
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {
        "application/json": {"schema": _ANSWER},
        "application/x-ndjson": {"schema": {"type": "string"}},
        "application/octet-stream": binary,
        "application/zip": binary,
        "text/html": {"schema": {"type": "string"}},
    }
    return {200: {"description": "the explanation", "content": content}, **refusals}
