# SPDX-License-Identifier: Apache-2.0
"""An ONNX file run by ONNX Runtime, beside the CPU engine in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _backend
from ..classifier import Classifier
from ..model import CAE
from . import Exported

_BATCH = 2


def check_file(model: CAE, exported: Exported, classifier: Classifier | None) -> dict[str, float]:
    """Relative errors of a file's outputs by name; empty where onnxruntime is not installed.

    Random images and class codes stand in; norms are of the error and of what the CPU engine
    computes, which itself errs by about 1e-6.

    Args:
        model: That was exported.
        exported: The file.
        classifier: That was exported with it.
    """
    try:
        import onnxruntime
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = _backend.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(exported.path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    engine = _backend.Engine(model.config.to_dict(), dict(model.weights), max_batch=_BATCH)
    generator = np.random.default_rng(0)
    shape = (_BATCH, *model.config.image_shape)
    images = generator.uniform(-1, 1, shape).astype(np.float32)
    individual, codes = engine.encode(images)
    feed: dict[str, Any] = {"images": images}
    expected: dict[str, Any] = {"individual": individual, "class_code": codes}
    if exported.part.startswith("decoder"):
        t = np.array([0.25, 1.0], dtype=np.float32)
        ends = codes[::-1] + np.float32(0.1)
        feed = {"individual": individual, "class_code": codes, "exemplar_code": ends, "t": t}
        rows = np.arange(_BATCH, dtype=np.int32)
        images = engine.decode(individual, _backend.lerp_codes(codes, ends, t), rows)
        expected = {"images": images}
    found = dict(zip(exported.outputs, session.run(list(exported.outputs), feed), strict=True))
    if classifier is not None and "logits" in found:
        seen = found.get("images", images)
        expected["logits"] = classifier(seen)
    return {
        name: float(np.linalg.norm(found[name] - exact) / max(float(np.linalg.norm(exact)), 1e-30))
        for name, exact in expected.items()
        if name in found
    }
