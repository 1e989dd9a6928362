# SPDX-License-Identifier: Apache-2.0
"""A model repository for NVIDIA Triton: folders, configurations, ONNX files or engines.

Layout and configuration as in Triton's "Model Repository" and "Model Configuration" pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..classifier import Classifier
from ..engine_files import Shapes, read_engine
from ..errors import EngineError
from ..files import atomic_directory
from ..model import CAE
from . import export_onnx

_ONNX, _ENGINE = "onnxruntime_onnx", "tensorrt_plan"
_FILES = {_ONNX: "model.onnx", _ENGINE: "model.plan"}
_QUEUE_DELAY_US = 1000


def write_repository(
    folder: Path,
    model: CAE,
    *,
    classifier: Classifier | None = None,
    precision: str = "fp32",
    phases: bool = False,
    max_batch: int = 16,
    engines: Iterable[Path] = (),
    key: bytes | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Writes `encoder`, `decoder` and, with a classifier, `decoder_classifier`.

    Args:
        folder: Written whole or not at all.
        model: Weights.
        classifier: The classifier, or None.
        precision: Of the ONNX files; see :func:`cae_fast.export.build_onnx`.
        phases: The same.
        max_batch: The largest batch that Triton forms.
        engines: Engine files of `tensorrt`, each instead of the ONNX file of its part.
        key: That must have signed them.
        overwrite: Replace a folder that is not empty.

    Returns:
        Triton's platform by model name.

    Raises:
        EngineError: An engine is damaged, of another model or classifier, or of a flavour that
            Triton cannot load.
        ValueError: A wrong option, or a folder that is not empty.
    """
    if isinstance(max_batch, bool) or not 1 <= max_batch <= 65_535:
        raise EngineError(f"max_batch must be an integer in 1..65535, got {max_batch!r}")
    parts = ["encoder", "decoder", *(["decoder-classifier"] if classifier is not None else [])]
    plans = {part: plan for part, plan in (_plan(path, model, classifier, key) for path in engines)}
    if unknown := sorted(set(plans) - set(parts)):
        raise EngineError(f"no engine of the {unknown[0]} is served here, only of {parts}")
    platforms = {}
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        for part in parts:
            name = part.replace("-", "_")
            version = temporary / name / "1"
            version.mkdir(parents=True)
            if part in plans:
                platform = _ENGINE
                data, inputs, outputs, batch = plans[part]
                (version / _FILES[platform]).write_bytes(data)
            else:
                platform = _ONNX
                written = export_onnx(
                    model,
                    version / _FILES[platform],
                    part,
                    classifier=classifier if "classifier" in part else None,
                    precision=precision,
                    phases=phases,
                )
                inputs, outputs, batch = written.inputs, written.outputs, max_batch
            text = configuration(name, platform, min(batch, max_batch), inputs, outputs)
            (temporary / name / "config.pbtxt").write_text(text, encoding="utf-8")
            platforms[name] = platform
    return platforms


def configuration(name: str, platform: str, max_batch: int, inputs: Shapes, outputs: Shapes) -> str:
    """A `config.pbtxt`; the first axis of every tensor is Triton's batch."""
    lines = [f'name: "{name}"', f'platform: "{platform}"', f"max_batch_size: {max_batch}"]
    for what, shapes in (("input", inputs), ("output", outputs)):
        for tensor, shape in shapes.items():
            lines += [f"{what} {{", f'  name: "{tensor}"', "  data_type: TYPE_FP32"]
            # A tensor [N] has no axes of its own, which Triton spells as a reshape.
            dims = ", ".join(map(str, shape[1:])) or "1"
            lines.append(f"  dims: [ {dims} ]")
            if len(shape) == 1:
                lines.append("  reshape { shape: [ ] }")
            lines.append("}")
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}")
    return "\n".join(lines) + "\n"


def _plan(
    path: str | os.PathLike[str], model: CAE, classifier: Classifier | None, key: bytes | None
) -> tuple[str, tuple[bytes, Shapes, Shapes, int]]:
    """A checked engine: part, and what its configuration needs."""
    engine, manifest = read_engine(path, key=key)
    if manifest.flavour != "tensorrt":
        raise EngineError(
            f"{path}: built by {manifest.flavour}, which Triton cannot load: it runs engines of "
            "`tensorrt`, of its own version; leave --engine out to have ONNX served"
        )
    if manifest.model_sha256 != model.sha256:
        raise EngineError(f"{path}: built from another model")
    if "classifier" in manifest.part and classifier is not None:
        if classifier.sha256 is None or manifest.classifier_sha256 != classifier.sha256:
            raise EngineError(f"{path}: built from another classifier than {classifier.name}")
        if manifest.class_names != tuple(model.config.class_names):
            raise EngineError(
                f"{path}: its classes are {list(manifest.class_names)}, expected "
                f"{list(model.config.class_names)}"
            )
    return manifest.part, (engine, manifest.inputs, manifest.outputs, manifest.max_batch)
