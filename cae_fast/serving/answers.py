# SPDX-License-Identifier: Apache-2.0
"""Answers as JSON, arrays, one binary map, or a report."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.arrays import Float32
from cae_fast.classifier_outputs import softmax
from cae_fast.explanation import Explanation
from cae_fast.pictures import image_png, png_bytes
from cae_fast.report import html_fragment
from cae_fast.report.case import cases, sentence
from cae_fast.report.page import Frames, page
from cae_fast.serving.catalog import ServedModel
from cae_fast.serving.jobs import Answer, Job

_NO_PICTURES = ("non_finite", "rejected")
_DIGITS = 6


def result_json(
    model: ServedModel, job: Job, answer: Answer, *, pictures: bool = True
) -> dict[str, Any]:
    """The contract of `/explain`, but for `request_id` and `seconds.total`.

    Args:
        model: That explained.
        job: What was asked.
        answer: What was found.
        pictures: Whether images and frames are part of it, as base64 PNG.
    """
    said = answer.fields
    case = cases(as_explanation(model, job, answer))[0]
    status = str(said["status"])
    path_t = said["path_t"]
    value: dict[str, Any] = {
        "model": model.name,
        "status": status,
        "status_text": sentence(case),
        "map": case.map_name,
        **{
            which: _class(model, int(said[which]))
            for which in ("source_class", "target_class", "reached_class", "reconstructed_class")
        },
        "second_path": bool(said["searched_again"]),
        "t_flip": said["t_flip"],
        "bracket": said["bracket"],
        "evaluations": said["evaluations"],
        "class_names": model.class_names,
        "probabilities_source": softmax(said["logits_source"]),
        "probabilities_counterfactual": softmax(said["logits_counterfactual"]),
        "path": {"t": path_t, "probabilities": softmax(said["path_logits"])},
        "exemplar": _exemplars(model, said["exemplar"], job.options.reach),
    }
    if "code_image" in said:
        value["code"] = _codes(said, path_t)
    if pictures:
        value["images"] = _pictures(job.image, said, status)
        if "frames" in said:
            value["frames"] = frames_json(said)
    value["seconds"] = {"queue": answer.queue_s, "explain": answer.engine_s}
    value["meta"] = answer.meta | {
        "batch_size": answer.batch_size,
        "model_version": model.version,
    }
    plain: dict[str, Any] = to_plain(value)
    return plain


def frames_json(said: Mapping[str, Any]) -> dict[str, Any]:
    """Frames with their positions and probabilities."""
    pictures = [png_bytes(_squeezed(frame)) for frame in said["frames"]]
    return {
        "t": said["frame_t"],
        "probabilities": softmax(said["frame_logits"]),
        "png": [base64.b64encode(picture).decode("ascii") for picture in pictures],
    }


def dumps(value: Any) -> bytes:
    """Valid JSON of a tree of plain values."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def to_plain(value: Any) -> Any:
    """Values that JSON has: arrays as lists, undefined numbers as None, floats shortened."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            rounded = np.round(value.astype(np.float64), _DIGITS)
            if np.isfinite(rounded).all():
                return rounded.tolist()
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value


def npz_bytes(model: ServedModel, job: Job, answer: Answer) -> bytes:
    """All arrays and, as the JSON text `meta`, everything else; for `numpy.load`."""
    arrays: dict[str, Any] = {
        name: np.asarray(value)
        for name, value in answer.fields.items()
        if name not in ("status", "reason")
    }
    said = json.dumps(result_json(model, job, answer, pictures=False), allow_nan=False)
    buffer = io.BytesIO()
    np.savez(buffer, image=job.image, meta=np.array(said), **arrays)
    return buffer.getvalue()


def raw_map(answer: Answer) -> tuple[bytes, dict[str, str]]:
    """The saliency map as float32 [H, W], little-endian, row by row; what it says as headers."""
    said = answer.fields
    saliency: Float32 = np.ascontiguousarray(said["saliency"], dtype="<f4")
    t_flip = said["t_flip"]
    headers = {
        "X-Status": str(said["status"]),
        "X-Shape": ",".join(map(str, saliency.shape)),
        "X-Dtype": "float32",
        "X-T-Flip": f"{t_flip:.7g}" if math.isfinite(t_flip) else "",
        "X-Source-Class": str(int(said["source_class"])),
        "X-Target-Class": str(int(said["target_class"])),
        "X-Reached-Class": str(int(said["reached_class"])),
    }
    return saliency.tobytes(), headers


def report_html(model: ServedModel, job: Job, answer: Answer, *, name: str) -> bytes:
    """The report on one image as a page of its own."""
    explanation = as_explanation(model, job, answer)
    explanation.names = [name]
    frames = None
    if "frames" in answer.fields:
        pixels = answer.fields["frames"].astype(np.float32) / 127.5 - 1
        frames = Frames(answer.fields["frame_t"], pixels.transpose(0, 3, 1, 2)[None])
    title = f"Explanation of {name}"
    exemplar = np.asarray(answer.fields["exemplar_png"]).tobytes() or None
    body = html_fragment(
        explanation, explanation.images, title=title, exemplar_images=[exemplar], frames=frames
    )
    return page(title, body).encode()


def as_explanation(model: ServedModel, job: Job, answer: Answer) -> Explanation:
    """The answer as a `cf.Explanation` of one image; arrays are NumPy."""
    said = answer.fields

    def one(name: str) -> Any:
        return np.asarray(said[name])[None]

    status = str(said["status"])
    difference = said["counterfactual"] - said["reconstruction"]
    if status == "reconstruction_flips":
        difference = said["counterfactual"] - job.image
    elif status in (*_NO_PICTURES, "already_target"):
        difference = np.zeros_like(job.image)
    rows = [int(row) for row in np.atleast_1d(said["exemplar"]) if row >= 0]
    reason = str(said.get("reason", ""))
    return Explanation(
        status=np.array([status]),
        counterfactual=one("counterfactual"),
        reconstruction=one("reconstruction"),
        difference=difference[None],
        saliency=one("saliency"),
        t_flip=one("t_flip"),
        bracket=one("bracket"),
        source_class=one("source_class"),
        target_class=one("target_class"),
        reached_class=one("reached_class"),
        logits_source=one("logits_source"),
        logits_counterfactual=one("logits_counterfactual"),
        path_t=[said["path_t"]],
        path_logits=[said["path_logits"]],
        evaluations=one("evaluations"),
        exemplar=one("exemplar"),
        images=job.image[None],
        names=["image"],
        class_names=tuple(model.class_names),
        meta=answer.meta | {"rejected": {0: reason} if reason else {}},
        exemplar_names=[tuple(model.info["bank_names"][row] for row in rows)],
        reconstructed_class=one("reconstructed_class"),
        second_path=[said["second_path"]],
    )


def _class(model: ServedModel, index: int) -> dict[str, Any]:
    """A class by index and name; -1 is any other, or none."""
    name = model.class_names[index] if 0 <= index < model.num_classes else None
    return {"index": index, "name": name}


def _exemplars(model: ServedModel, rows: npt.ArrayLike, reach: float) -> dict[str, Any]:
    """Bank rows, their names and classes by the data set, and where on the path they lie."""
    used = [int(row) for row in np.atleast_1d(np.asarray(rows)) if row >= 0]
    labels = model.info["bank_labels"]
    return {
        "rows": used,
        "names": [model.info["bank_names"][row] for row in used],
        "labels": [int(labels[row]) for row in used],
        "t": 1 / reach if used else 1.0,
    }


def _codes(said: Mapping[str, Any], path_t: Float32) -> dict[str, Any]:
    """Positions in the plane, where lines stay straight: of the points classified, of the end."""
    start, end = said["code_start"], said["code_end"]
    way = end - start
    path = start + path_t[:, None] * way if np.isfinite(way).all() else np.empty((0, 2))
    return {
        "image": said["code_image"],
        "path": path,
        "exemplar": said["code_exemplar"],
        "end": end,
    }


def _pictures(image: Float32, said: Mapping[str, Any], status: str) -> dict[str, Any]:
    """Base64 PNG files; null where nothing was decoded."""
    finite = np.isfinite(image).all()
    shown: dict[str, bytes | None] = {"image": image_png(image) if finite else None}
    for name in ("reconstruction", "counterfactual"):
        shown[name] = None if status in _NO_PICTURES else image_png(said[name])
    grey = np.rint(np.clip(said["saliency"], 0, 1) * 255).astype(np.uint8)
    shown["saliency"] = None if status in _NO_PICTURES else png_bytes(grey)
    return {
        name: None if png is None else base64.b64encode(png).decode("ascii")
        for name, png in shown.items()
    }


def _squeezed(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, C] as Pillow wants them."""
    return pixels[..., 0] if pixels.shape[-1] in (1, 2) else pixels
