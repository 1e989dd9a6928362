# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a peer: eager, compiled, exported; and the authors' procedure in it."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..export.torch_onnx import silenced
from ..model import CAE
from ..networks import CAEModule
from ..training.classifier_export import import_onnx
from .tasks import Arrays, ExplainTask, NetworkTask, network_task

_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
# Of the authors' script: the path is decoded at steps of 0.2.
AUTHORS_POINTS = tuple(np.linspace(0, 1, 6))
_INPUTS = {"encode": ("images",), "decode": ("individual", "code")}
# A call this long need not be repeated to choose a memory format.
_LONG_S = 0.2
# Of the files that `export` writes.
BATCH_NAME = "batch"


class TimeLimit(Exception):
    """Compiling took too long."""


@functools.lru_cache(maxsize=2)  # both formats of the model at hand
def _networks(model: CAE, layout: str) -> CAEModule:
    """The specification in a memory format."""
    networks = model.module().eval().requires_grad_(False)
    return networks.to(memory_format=_FORMATS[layout])  # type: ignore[call-overload,no-any-return]


class _Encode(nn.Module):
    """Both encoders as one graph."""

    def __init__(self, networks: CAEModule) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.networks.encode(images)


class _Decode(nn.Module):
    """The decoder with its modulation."""

    def __init__(self, networks: CAEModule) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, individual: Tensor, code: Tensor) -> Tensor:
        return self.networks.decode(individual, code)


_GRAPHS: dict[str, Callable[[CAEModule], nn.Module]] = {"encode": _Encode, "decode": _Decode}


def faster_layout(kind: str, model: CAE) -> str:
    """The memory format in which eager PyTorch is quicker, by two or more calls at batch 1."""
    task = network_task(kind, model, 1)
    taken = {}
    for layout in _FORMATS:
        run = eager(task, layout)
        calls = 1 if _seconds(run) > _LONG_S else 5
        taken[layout] = min(_seconds(run) for _ in range(calls))
    return min(taken, key=lambda name: taken[name])


def eager(task: NetworkTask, layout: str) -> Callable[[], Arrays]:
    """The specification itself, in inference mode."""
    network, inputs = _laid_out(task, layout)

    def run() -> Arrays:
        with torch.inference_mode():
            return _arrays(network(*inputs))

    return run


def compiled(task: NetworkTask, layout: str, limit_s: float) -> Callable[[], Arrays]:
    """torch.compile with max-autotune and frozen weights, compiled here.

    Raises:
        TimeLimit: It took longer than `limit_s` (watched in the main thread only).
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.reset()
    network, inputs = _laid_out(task, layout)
    program = torch.compile(network, mode="max-autotune", dynamic=False)
    with (
        _limited(limit_s),
        silenced(),
        torch._inductor.config.patch(freezing=True),
        torch.no_grad(),
    ):
        program(*inputs)

    def run() -> Arrays:
        with torch.no_grad():
            return _arrays(program(*inputs))

    return run


def export(kind: str, model: CAE, path: Path) -> None:
    """Writes the network of a task as ONNX, with any number of images (dimension `BATCH_NAME`).

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    onnx, _ = import_onnx()
    task = network_task(kind, model, 2)
    with silenced():
        program = torch.onnx.export(
            _GRAPHS[kind](_networks(model, "NCHW")),
            tuple(torch.from_numpy(array) for array in task.inputs),
            input_names=_INPUTS[kind],
            dynamic_shapes=tuple({0: torch.export.Dim(BATCH_NAME, min=1)} for _ in task.inputs),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    onnx.save_model(program.model_proto, str(path))


def authors_procedure(task: ExplainTask, layout: str) -> Callable[[], Arrays]:
    """What the authors' script computes for one image, in eager PyTorch.

    Both encoders on the image and on the reference, then one decode after the other at t = 0, 0.2,
    ..., 1; the classifier is left out. Returns the image decoded at t = 0.
    """
    networks, form = _networks(task.model, layout), _FORMATS[layout]
    image, reference = (
        torch.from_numpy(array).contiguous(memory_format=form)
        for array in (task.image, task.reference)
    )

    def run() -> Arrays:
        with torch.inference_mode():
            individual, start = networks.encode(image)
            _, end = networks.encode(reference)
            decoded = [
                networks.decode(individual, (1 - float(t)) * start + float(t) * end)
                for t in AUTHORS_POINTS
            ]
            return _arrays(decoded[0])

    return run


def _laid_out(task: NetworkTask, layout: str) -> tuple[nn.Module, list[Tensor]]:
    """Network and inputs in a memory format."""
    form = _FORMATS[layout]
    graph = _GRAPHS[task.kind](_networks(task.model, layout))
    inputs = [
        tensor.contiguous(memory_format=form) if tensor.ndim == 4 else tensor
        for tensor in map(torch.from_numpy, task.inputs)
    ]
    return graph, inputs


def _arrays(outputs: Tensor | tuple[Tensor, ...]) -> Arrays:
    tensors = (outputs,) if isinstance(outputs, Tensor) else outputs
    return tuple(tensor.numpy() for tensor in tensors)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends the block after `seconds` by an exception, where signals can."""
    over = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal over
        over = True
        raise TimeLimit

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except ValueError:  # not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if over:  # however the compiler has wrapped it
            raise TimeLimit from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
