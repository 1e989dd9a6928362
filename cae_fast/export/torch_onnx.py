# SPDX-License-Identifier: Apache-2.0
"""torch modules and exported programs as ONNX, with errors that name what cannot be exported."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import ClassifierError, missing_extra
from .graph import import_onnx

_NAMED = (
    re.compile(r"op='([\w.:]+)'"),  # torch.onnx: <OpOverload(op='aten.fft_rfft2', ...)>
    re.compile(r"(?:operator|function) [`'\"]?([\w.]+(?:::|\.)[\w.]+)"),
)


def onnx_of(network: Any, shape: tuple[int, ...], name: str) -> Any:
    """Writes a torch network as an ONNX model, "images" [N, C, H, W] to "logits", any N.

    Args:
        network: A `torch.nn.Module` on the CPU in eval mode, or a `torch.export.ExportedProgram`
            with one free size, the first.
        shape: (C, H, W) of its input.
        name: Of the classifier, for messages.

    Raises:
        ClassifierError: It cannot be exported; the message names the operator where torch says so.
        MissingExtra: onnx or onnxscript is not installed.
    """
    import torch

    import_onnx()
    try:
        import onnxscript  # noqa: F401 - torch.onnx.export needs it
    except ImportError:
        raise missing_extra("tensorrt", "onnxscript") from None
    options: dict[str, Any] = {}
    if isinstance(network, torch.nn.Module):
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=65_536)},)
    try:
        with silenced():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, *shape),),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                verbose=False,
                **options,
            )
    except Exception as error:  # whatever tracing and conversion say of a user's network
        raise ClassifierError(
            f"{name}: {_what_failed(error)} and so cannot be part of an export or engine; {INSTEAD}"
        ) from error
    if program is None:
        raise ClassifierError(f"{name}: torch.onnx.export gave no program; {INSTEAD}")
    model = program.model_proto
    forget_origin(model)
    return model


INSTEAD = "leave the classifier out (--part decoder, no --classifier): it is then called as it is"


def _what_failed(error: BaseException) -> str:
    """The operator that has no counterpart, else the first telling line."""
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__
    for pattern in _NAMED:
        if found := pattern.search(text):
            return f"its operator {found.group(1)} has no counterpart in ONNX"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"it cannot be written as ONNX ({lines[0] if lines else type(error).__name__:.200})"


def forget_origin(model: Any) -> None:
    """Drops the exporter's notes from an ONNX model: they name folders of this machine."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.initializer,
        *graph.value_info,
    ):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps the exporter's progress text and notices off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
