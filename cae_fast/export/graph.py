# SPDX-License-Identifier: Apache-2.0
"""A small writer of ONNX graphs: the layers of the networks, in float32 or half precision.

Half precision means: convolutions and the activations between them are halves; normalisations, the
class encoder's mean, the modulation and everything that enters or leaves the graph are float32. The
types are written into the graph, so that a runtime with strong typing computes just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import missing_extra

NORM_EPS = 1e-5  # reference.NORM_EPS, which importing would load torch for
OPSET = 18
LATEST_OPSET = 22  # up to which every operator used here means the same
_IR_VERSION = 9  # the oldest that allows what is used; read by ONNX Runtime 1.14 and later
_FLOAT, _HALF = 1, 10  # onnx.TensorProto.DataType
PRECISIONS = ("fp32", "fp16")


def import_onnx() -> Any:
    """The module onnx.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import onnx
        import onnx.compose
        import onnx.inliner
        import onnx.version_converter
    except ImportError:
        raise missing_extra("onnx", "onnx") from None
    return onnx


class Graph:
    """Nodes and constants, appended in the order in which they are computed.

    Values are named by text; each method returns the name of what it computes.
    """

    def __init__(self, *, precision: str, opset: int = OPSET, half_products: bool = False) -> None:
        """Starts an empty graph.

        Args:
            precision: "fp32" or "fp16", of convolutions.
            opset: Version of the operators, `OPSET` to `LATEST_OPSET`.
            half_products: Matrix products in half precision as well, with "fp16".
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self._onnx = import_onnx()
        self.half = precision == "fp16"
        self._half_products = self.half and half_products
        self.opset = opset
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._known: dict[tuple[str, Any, bytes], str] = {}
        self._count = 0
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """A float32 input; texts in `shape` are free sizes."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, _FLOAT, list(shape)))
        return name

    def typed_input(self, name: str, kind: int) -> str:
        """An input of any shape and an ONNX type."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, None))
        return name

    def typed_output(self, value: str, name: str, kind: int) -> None:
        """An output of any shape and an ONNX type."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, kind, None))

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """A float32 output: `value` under the name that callers see."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, _FLOAT, list(shape)))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Appends a node with one output."""
        return self.nodes(operator, inputs, 1, **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[str], count: int, **attributes: Any
    ) -> list[str]:
        """Appends a node with `count` outputs."""
        label = f"{operator}_{self._count}"
        names = [label] if count == 1 else [f"{label}_{i}" for i in range(count)]
        self._count += 1
        self._nodes.append(
            self._onnx.helper.make_node(operator, list(inputs), names, name=label, **attributes)
        )
        return names

    def constant(self, values: npt.ArrayLike, dtype: Any = None) -> str:
        """A constant; equal ones are kept once."""
        array = np.ascontiguousarray(values, dtype=dtype)
        key = (str(array.dtype), np.shape(values), array.tobytes())
        if key not in self._known:
            name = f"constant_{len(self._known)}"
            shaped = array.reshape(np.shape(values))
            self._constants.append(self._onnx.numpy_helper.from_array(shaped, name))
            self._known[key] = name
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant list of int64."""
        return self.constant(values, np.int64)

    def floats(self, value: float) -> str:
        """A float32 number."""
        return self.constant(value, np.float32)

    def to_half(self, value: str) -> str:
        """Casts to the dtype of convolutions."""
        return self.node("Cast", value, to=_HALF) if self.half else value

    def to_float(self, value: str) -> str:
        """Casts back to float32."""
        return self.node("Cast", value, to=_FLOAT) if self.half else value

    def pad(self, value: str, amount: int, mode: str = "reflect") -> str:
        """Pads height and width on all sides."""
        if amount == 0:
            return value
        return self.node(
            "Pad", value, self.integers(0, 0, amount, amount, 0, 0, amount, amount), mode=mode
        )

    def conv(
        self, value: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any], *, stride: int = 1
    ) -> str:
        """Convolution without padding: `value` in the dtype of convolutions, like the result."""
        dtype = np.float16 if self.half else np.float32
        side = weight.shape[2]
        return self.node(
            "Conv",
            value,
            self.constant(weight, dtype),
            self.constant(bias, dtype),
            kernel_shape=[side, weight.shape[3]],
            strides=[stride, stride],
        )

    def instance_norm(self, value: str, channels: int) -> str:
        """(x - mean) / sqrt(biased variance + eps) of each channel of each sample, float32."""
        return self.node(
            "InstanceNormalization",
            value,
            self.constant(np.ones(channels), np.float32),
            self.constant(np.zeros(channels), np.float32),
            epsilon=NORM_EPS,
        )

    def layer_norm(
        self, value: str, gamma: npt.NDArray[Any], beta: npt.NDArray[Any], count: int
    ) -> str:
        """(x - mean) / (unbiased std + eps) over the `count` values of a sample, float32."""
        centred = self.node("Sub", value, self._mean(value))
        variance = self._mean(self.node("Mul", centred, centred))
        unbiased = self.node("Mul", variance, self.floats(count / (count - 1)))
        spread = self.node("Add", self.node("Sqrt", unbiased), self.floats(NORM_EPS))
        scaled = self.node(
            "Mul", self.node("Div", centred, spread), self.constant(_column(gamma), np.float32)
        )
        return self.node("Add", scaled, self.constant(_column(beta), np.float32))

    def _mean(self, value: str) -> str:
        """Of each sample, axis by axis: millions of values in one float32 sum err by 4e-5."""
        for axis in (3, 2, 1):
            value = self.node("ReduceMean", value, self.integers(axis), keepdims=1)
        return value

    def linear(self, value: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> str:
        """Matrix product: value [N, in] -> [N, out], both float32."""
        dtype = np.float16 if self._half_products else np.float32
        product = self.node(
            "Gemm",
            self.to_half(value) if self._half_products else value,
            self.constant(weight, dtype),
            self.constant(bias, dtype),
            transB=1,
        )
        return self.to_float(product) if self._half_products else product

    def finish(self, name: str, metadata: dict[str, str], *, check: bool = True) -> Any:
        """The model; with `check`, checked by `onnx.checker` with its shapes inferred."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=max(_IR_VERSION, 10 if self.opset > 20 else 0),
            producer_name="cae_fast",
        )
        helper.set_model_props(model, metadata)
        if check:
            self._onnx.checker.check_model(model, full_check=True)
        return model


def _column(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[:, None, None]
