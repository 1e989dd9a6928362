# SPDX-License-Identifier: Apache-2.0
"""Classifiers as ONNX models: images [N, C, S, S] in [-1, 1] to logits [N, K], all steps inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import GREY_WEIGHTS, is_module, resize_weights
from ..class_names import agree
from ..classifier import Classifier
from ..classifier_files import open_exported
from ..errors import ClassifierError
from ..model import CAEConfig
from ..onnx_files import external_files
from .graph import LATEST_OPSET, OPSET, Graph, import_onnx
from .networks import BATCH
from .torch_onnx import INSTEAD, forget_origin, onnx_of

_SMALLEST = float(np.finfo(np.float32).tiny)
_SIZES = {1: np.float32, 10: np.float16, 11: np.float64}  # what a classifier may take


def classifier_model(classifier: Classifier, config: CAEConfig) -> Any:
    """The ONNX model of a classifier with everything that :class:`Classifier` does around it.

    Args:
        classifier: Loaded from `.onnx` or `.pt2`, or around a `torch.nn.Module`.
        config: Of the model whose images it is to read.

    Returns:
        An `onnx.ModelProto`, "images" [N, C, S, S] to "logits" [N, K], of opset 18 to 22.

    Raises:
        ClassifierError: It cannot be exported (the message says which operator where it is one),
            has a fixed batch, or its classes are not the model's.
        MissingExtra: onnx, or torch for a torch network, is not installed.
    """
    onnx = import_onnx()
    name = classifier.name
    agree({"model": config.class_names, "classifier": classifier.labels}, error=ClassifierError)
    network = _of_opset(_network(classifier, config), name)
    opset = _opset(network)
    for index, node in enumerate(network.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # to be named where it is refused
    given = [value for value in network.graph.input if not _is_constant(network, value.name)]
    names = [value.name for value in network.graph.output]
    if len(given) != 1 or not names:
        raise ClassifierError(
            f"{name}: the network has {len(given)} inputs and {len(names)} outputs, expected one "
            "input"
        )
    dims = given[0].type.tensor_type.shape.dim
    if len(dims) != 4:
        raise ClassifierError(f"{name}: its input has {len(dims)} axes, expected [N, C, H, W]")
    if dims[0].HasField("dim_value"):
        raise ClassifierError(
            f"{name}: its batch is fixed at {dims[0].dim_value}: export it with a free batch, or "
            f"{INSTEAD}"
        )
    wanted = "logits" if "logits" in names else names[0]
    before = Graph(precision="fp32", opset=opset)
    images = before.input("images", (BATCH, *config.image_shape))
    prepared = _prepared(before, images, classifier, config.in_channels, config.image_size)
    kind = given[0].type.tensor_type.elem_type
    if kind not in _SIZES:
        raise ClassifierError(f"{name}: its input must be of floats, it is of ONNX type {kind}")
    before.typed_output(before.node("Cast", prepared, to=kind), "prepared", kind)
    after = Graph(precision="fp32", opset=opset)
    result = next(value for value in network.graph.output if value.name == wanted)
    said = result.type.tensor_type
    raw = after.typed_input("raw", said.elem_type)
    logits = _logits(after, raw, classifier, [dim.dim_value for dim in said.shape.dim])
    after.output(logits, "logits", (BATCH, config.num_classes))
    first, last = before.finish("before", {}, check=False), after.finish("after", {}, check=False)
    for value in [value for value in network.graph.output if value.name != wanted]:
        network.graph.output.remove(value)
    for part in (first, network, last):
        part.ir_version = max(first.ir_version, network.ir_version)
    try:
        joined = onnx.compose.merge_models(
            onnx.compose.add_prefix(first, "before/", rename_inputs=False),
            onnx.compose.add_prefix(network, "net/"),
            io_map=[("before/prepared", f"net/{given[0].name}")],
        )
        joined = onnx.compose.merge_models(
            joined,
            onnx.compose.add_prefix(last, "after/", rename_outputs=False),
            io_map=[(f"net/{wanted}", "after/raw")],
        )
        _check_classes(joined, config, name)
        onnx.checker.check_model(joined, full_check=True)
    except ClassifierError:
        raise
    except Exception as error:  # onnx raises several kinds
        raise ClassifierError(
            f"{name}: its ONNX network cannot be joined ({_first_line(error)}); {INSTEAD}"
        ) from error
    return joined


def join(decoder: Any, classifier: Any) -> Any:
    """The decoder's model with the classifier's behind it: outputs "images" and "logits"."""
    onnx = import_onnx()
    for part in (decoder, classifier):
        part.ir_version = max(decoder.ir_version, classifier.ir_version)
    prefixed = onnx.compose.add_prefix(classifier, "classifier/", rename_outputs=False)
    joined = onnx.compose.merge_models(decoder, prefixed, io_map=[("drawn", "classifier/images")])
    del joined.metadata_props[:]
    joined.metadata_props.extend(decoder.metadata_props)
    onnx.checker.check_model(joined, full_check=True)
    return joined


def _network(classifier: Classifier, config: CAEConfig) -> Any:
    """The network alone."""
    onnx = import_onnx()
    path = getattr(classifier.function, "path", None)
    if isinstance(path, Path) and path.suffix.lower() == ".onnx":
        external_files(path)
        try:
            model = onnx.load(str(path))
        except Exception as error:  # protobuf's and onnx's own
            raise ClassifierError(f"{path}: onnx cannot load it ({_first_line(error)})") from error
        model = onnx.inliner.inline_local_functions(model)
        forget_origin(model)
        return model
    side = config.image_size
    shape = (classifier._channels or config.in_channels, *(classifier._size or (side, side)))
    if isinstance(path, Path):
        return onnx_of(open_exported(path)[0], shape, classifier.name)
    if is_module(classifier.function):
        import copy

        module: Any = copy.deepcopy(classifier.function)
        return onnx_of(module.cpu().float().eval(), shape, classifier.name)
    raise ClassifierError(
        f"{classifier.name}: a Python function or TorchScript file cannot be written as ONNX: give "
        f"its .onnx or .pt2 file, or {INSTEAD}"
    )


def _opset(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _of_opset(model: Any, name: str) -> Any:
    """The model in an opset that can be joined with ours."""
    onnx = import_onnx()
    opset = _opset(model)
    if opset > LATEST_OPSET:
        raise ClassifierError(
            f"{name}: its operators are of opset {opset}, expected at most {LATEST_OPSET}: export "
            f"it with opset_version={OPSET}, or {INSTEAD}"
        )
    if opset >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own
        raise ClassifierError(
            f"{name}: its operators are of opset {opset} and cannot be brought to {OPSET} "
            f"({_first_line(error)}); {INSTEAD}"
        ) from error


def _is_constant(model: Any, name: str) -> bool:
    """Old models list their weights as inputs too."""
    return any(tensor.name == name for tensor in model.graph.initializer)


def _prepared(graph: Graph, x: str, classifier: Classifier, channels: int, side: int) -> str:
    """Channels, size and normalisation, as `Classifier._prepare` does them."""
    want = classifier._channels
    if want is not None and want != channels:
        if (channels, want) == (1, 3):
            x = graph.node("Concat", x, x, x, axis=1)
        elif (channels, want) == (3, 1):
            weight = np.array(GREY_WEIGHTS, dtype=np.float32).reshape(1, 3, 1, 1)
            x = graph.conv(x, weight, np.zeros(1, np.float32))
        else:
            raise ClassifierError(
                f"classifier {classifier.name} takes {want} channels, images have {channels}: only "
                "grey and RGB convert"
            )
        channels = want
    if classifier._size is not None and classifier._size != (side, side):
        rows, columns = (resize_weights(side, target) for target in classifier._size)
        x = graph.node("MatMul", graph.constant(rows, np.float32), x)
        x = graph.node("MatMul", x, graph.constant(columns.T, np.float32))
    mean, std = classifier._mean, classifier._std
    if mean is None and std is None:
        return x
    x = graph.node("Div", graph.node("Add", x, graph.floats(1)), graph.floats(2))
    for operator, numbers in (("Sub", mean), ("Div", std)):
        if numbers is None:
            continue
        if len(numbers) not in (1, channels):
            raise ClassifierError(
                f"classifier {classifier.name}: mean and std must have 1 or {channels} numbers, "
                f"got {len(numbers)}"
            )
        x = graph.node(operator, x, graph.constant(numbers[:, None, None], np.float32))
    return x


def _logits(graph: Graph, raw: str, classifier: Classifier, shape: list[int]) -> str:
    """Outputs as logits, as `classifier_outputs.as_logits` makes them."""
    outputs = classifier._outputs
    x = graph.node("Cast", raw, to=1)
    if len(shape) == 1 and outputs != "logits":
        x = graph.node("Unsqueeze", x, graph.integers(1))
    if outputs == "sigmoid":
        zeros = graph.node("Mul", x, graph.floats(0))
        return graph.node("Concat", zeros, x, axis=1)
    if outputs == "probs":
        if len(shape) == 1 or shape[1:] == [1]:
            x = graph.node("Concat", graph.node("Sub", graph.floats(1), x), x, axis=1)
        return graph.node("Log", graph.node("Max", x, graph.floats(_SMALLEST)))
    return x


def _check_classes(model: Any, config: CAEConfig, name: str) -> None:
    """That as many logits come out as the model has classes, where ONNX can tell."""
    onnx = import_onnx()
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.output[:]
    bare.graph.output.append(onnx.helper.make_tensor_value_info("logits", 1, None))
    inferred = onnx.shape_inference.infer_shapes(bare).graph.output[0].type.tensor_type.shape.dim
    classes = inferred[1].dim_value if len(inferred) == 2 else 0
    if classes and classes != config.num_classes:
        raise ClassifierError(
            f"classifier {name} returns {classes} logits per image, the model has "
            f"{config.num_classes} classes {list(config.class_names)}"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
