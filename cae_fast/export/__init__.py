# SPDX-License-Identifier: Apache-2.0
"""The networks as ONNX, for other runtimes: encoder, decoder, and the classifier behind it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CAEError
from ..files import atomic_write

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..model import CAE

__all__ = ["METADATA_KEY", "PARTS", "Exported", "build_onnx", "export_onnx"]

PARTS = ("encoder", "decoder", "decoder-classifier", "classifier")
METADATA_KEY = "cae_fast.export"
_LARGEST_BYTES = 2**31 - 1  # of one protocol buffer


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was written.

    Attributes:
        path: The file.
        part: Of `PARTS`.
        inputs: Shape by name, free sizes as text.
        outputs: The same.
        operations: Nodes.
        size_bytes: Of the file.
    """

    path: Path
    part: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    operations: int
    size_bytes: int


def build_onnx(
    model: CAE,
    part: str,
    *,
    classifier: Classifier | None = None,
    precision: str = "fp32",
    phases: bool = False,
    half_products: bool = False,
) -> Any:
    """The ONNX model of a part, checked.

    Args:
        model: Configuration and weights.
        part: "encoder": images -> individual, class_code. "decoder": individual, class_code,
            exemplar_code, t -> images at (1 - t) class_code + t exemplar_code.
            "decoder-classifier": the same -> images, logits. "classifier": images -> logits, with
            everything that :class:`cae_fast.Classifier` does around the network.
        classifier: For the parts that name it.
        precision: "fp32", or "fp16": half operands in the convolutions of encoder and decoder.
            Inputs and outputs are float32, the classifier is as its file is.
        phases: Convolve the upsampling layers at their source's size, to the same result with a
            third of the products.
        half_products: With "fp16", matrix products in half precision as well.

    Returns:
        An `onnx.ModelProto` whose first axes are free, named "batch".

    Raises:
        ValueError: Unknown part or precision, or a classifier that is missing or not wanted.
        ClassifierError: The classifier cannot be exported.
        MissingExtra: onnx is not installed.
    """
    from .classifiers import classifier_model, join
    from .graph import OPSET, Graph
    from .networks import add_decoder, add_encoder

    if part not in PARTS:
        raise CAEError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if ("classifier" in part) != (classifier is not None):
        lacks = "needs" if classifier is None else "takes no"
        raise CAEError(f"part {part!r} {lacks} classifier")
    metadata = {METADATA_KEY: json.dumps(_about(model, part, classifier, precision, phases))}
    behind = None if classifier is None else classifier_model(classifier, model.config)
    if part == "classifier":
        assert behind is not None
        del behind.metadata_props[:]
        _describe(behind, metadata)
        return behind
    opset = OPSET if behind is None else behind.opset_import[0].version
    graph = Graph(precision=precision, opset=opset, half_products=half_products)
    if part == "encoder":
        add_encoder(graph, model)
        return graph.finish("encoder", metadata)
    drawn = add_decoder(graph, model, phases=phases)
    if behind is None:
        return graph.finish("decoder", metadata)
    graph.output(drawn, "drawn", ("batch", *model.config.image_shape))
    return join(graph.finish("decoder", metadata), behind)


def export_onnx(
    model: CAE,
    path: str | os.PathLike[str],
    part: str,
    *,
    classifier: Classifier | None = None,
    precision: str = "fp32",
    phases: bool = False,
) -> Exported:
    """Writes a part as an ONNX file; arguments and errors as of :func:`build_onnx`."""
    built = build_onnx(model, part, classifier=classifier, precision=precision, phases=phases)
    data = serialized(built)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return Exported(
        path=Path(path),
        part=part,
        inputs=shapes(built.graph.input),
        outputs=shapes(built.graph.output),
        operations=len(built.graph.node),
        size_bytes=len(data),
    )


def serialized(model: Any) -> bytes:
    """An ONNX model as bytes.

    Raises:
        CAEError: It is larger than ONNX files without external data can be.
    """
    if model.ByteSize() > _LARGEST_BYTES:
        raise CAEError(
            f"the network has {model.ByteSize() / 2**30:.1f} GiB of weights, ONNX files hold at "
            "most 2: use precision fp16 or a narrower model"
        )
    data: bytes = model.SerializeToString()
    return data


def shapes(values: Any) -> dict[str, list[int | str]]:
    """Shape by name of a graph's inputs or outputs."""
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in values
    }


def _about(
    model: CAE, part: str, classifier: Classifier | None, precision: str, phases: bool
) -> dict[str, Any]:
    return {
        "part": part,
        "precision": precision,
        "phases": phases,
        "model_sha256": model.sha256,
        "config": model.config.to_dict(),
        "classifier": None if classifier is None else classifier.name,
        "classifier_sha256": None if classifier is None else classifier.sha256,
    }


def _describe(model: Any, metadata: dict[str, str]) -> None:
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
