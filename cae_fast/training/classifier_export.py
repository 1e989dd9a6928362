# SPDX-License-Identifier: Apache-2.0
"""Write a classifier as torch.export and ONNX files, each compared with the network first."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..classifier_files import METADATA_FILE, METADATA_KEY
from ..errors import ClassifierError, missing_extra
from ..export.torch_onnx import forget_origin, silenced
from ..files import atomic_write

_TOLERANCE = 1e-4  # of the logits, relative to their largest; float32 sums in another order
_BATCHES = (1, 3)


def write_pt2(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes a torch.export archive with any batch size and the metadata as an extra file.

    Args:
        network: The network in eval mode, on the CPU.
        path: File to write, atomically.
        metadata: JSON values; "channels" and "size" give the shape of the images.

    Raises:
        ClassifierError: The exported network does not compute what the network does.
    """
    program = torch.export.export(
        network,
        (_images(metadata, 2),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65_536)},),
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of the machine that trained
    with atomic_write(path) as temporary:
        archive = io.BytesIO()  # torch's own file writer aborts the process on a full disk
        torch.export.save(program, archive, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
        temporary.write_bytes(archive.getbuffer())
        written = torch.export.load(temporary).module()
        for batch in _BATCHES:
            images = _images(metadata, batch)
            with torch.no_grad():
                _compare(path, network(images).numpy(), written(images).numpy())


def import_onnx() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime; to be called before long work as well.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx.export needs it
    except ImportError as error:
        raise missing_extra("train", error.name or "onnx") from error
    return onnx, onnxruntime


def write_onnx(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes an ONNX file: "images" [N, C, S, S] to "logits" [N, K], any N, weights inside.

    Args:
        network: The network in eval mode, on the CPU.
        path: File to write, atomically.
        metadata: As in `write_pt2`; kept as a metadata property.

    Raises:
        ClassifierError: The exported network does not compute what the network does.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
    """
    onnx, onnxruntime = import_onnx()
    with silenced():
        program = torch.onnx.export(
            network,
            (_images(metadata, 2),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65_536)},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ClassifierError(f"{path}: torch.onnx.export gave no program")
    model = program.model_proto
    forget_origin(model)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(dict(metadata)))
    with atomic_write(path) as temporary:
        onnx.save_model(model, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for batch in _BATCHES:
            images = _images(metadata, batch)
            with torch.no_grad():
                expected = network(images).numpy()
            _compare(path, expected, session.run(["logits"], {"images": images.numpy()})[0])


def _images(metadata: Mapping[str, Any], batch: int) -> torch.Tensor:
    shape = (batch, metadata["channels"], metadata["size"], metadata["size"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(batch)) * 2 - 1


def _compare(path: Path, expected: Any, written: Any) -> None:
    error = float(np.abs(np.asarray(written) - expected).max())
    allowed = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if expected.shape != np.shape(written) or not error <= allowed:
        raise ClassifierError(
            f"{path}: the exported network differs from the trained one by {error:.2g} "
            f"(allowed {allowed:.2g}); nothing was written"
        )
