# SPDX-License-Identifier: Apache-2.0
"""Running engines: on the caller's stream, in memory of torch tensors.

Only bytes that :func:`cae_fast.engine_files.read_engine` has checked get here, and only of the
flavour and version that is installed, for the GPU that is there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..engine_files import Manifest, read_engine, signing_key
from ..errors import BackendUnavailable, EngineError, missing_extra
from .build import new_log, profiles
from .flavours import Flavour, find_flavour, present_gpus

_KEPT = 8  # contexts of different batch sizes and streams


class Context(Protocol):
    """A network ready for one batch size."""

    def run(self, tensors: Mapping[str, Any], stream: int) -> None:
        """Queues one run on a stream: reads inputs, writes outputs, all C-contiguous float32."""


class Network(Protocol):
    """What the backend needs of an engine."""

    max_batch: int

    def context(self, batch: int, stream: int) -> Context:
        """For a batch in 1..max_batch on a stream; the same one again as long as it is kept."""


def refuse_foreign(path: Path | str, manifest: Manifest, flavour: Flavour, gpu: str) -> None:
    """Raises for an engine of another TensorRT or for another GPU.

    Args:
        path: For messages.
        manifest: Of the engine.
        flavour: That is installed.
        gpu: Architecture that is there.

    Raises:
        EngineError: The engine is not for this place.
    """
    if (manifest.flavour, manifest.version) != (flavour.name, flavour.version):
        raise EngineError(
            f"{path}: built by {manifest.flavour} {manifest.version}, here is {flavour.name} "
            f"{flavour.version}, which cannot read it; build it anew"
        )
    if gpu not in manifest.gpus:
        raise EngineError(
            f"{path}: built for {', '.join(manifest.gpus)}, this GPU is {gpu}; build it with "
            f"--gpu {gpu}"
        )


def gpu_of(index: int) -> str:
    """Architecture of a GPU of this machine.

    Raises:
        BackendUnavailable: There is none of that index.
    """
    gpus = present_gpus()
    if index >= len(gpus):
        from .. import _backend

        status = _backend.cuda_status()
        why = status["error"] or status["reason"] or f"only {len(gpus)} found"
        raise BackendUnavailable(
            f"TensorRT engines run on NVIDIA GPUs, there is no {index} ({why})"
        )
    return gpus[index]


def cuda_torch(index: int) -> Any:
    """torch, which owns the memory that engines work in.

    Raises:
        MissingExtra: It is not installed.
        BackendUnavailable: It was built without CUDA, or sees no such GPU.
    """
    try:
        import torch
    except ImportError:
        raise missing_extra("tensorrt", "torch") from None
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"TensorRT engines work in memory of torch, and this torch ({torch.__version__}) sees "
            f"no GPU {index}: install a build of torch with CUDA"
        )
    cuda: Any = torch.cuda
    cuda.init()
    return torch


class Engine:
    """A deserialised engine on a GPU."""

    def __init__(self, plan: bytes, manifest: Manifest, flavour: Flavour, index: int) -> None:
        """Hands a checked plan to the runtime.

        Args:
            plan: Bytes that :func:`read_engine` returned with `manifest`.
            manifest: Of the plan.
            flavour: That is installed.
            index: Of the GPU.

        Raises:
            EngineError: It is for another place, or the runtime refuses it.
            BackendUnavailable: torch cannot use the GPU.
        """
        name = f"engine of the {manifest.part}"
        refuse_foreign(name, manifest, flavour, gpu_of(index))
        self._torch = cuda_torch(index)
        self.manifest = manifest
        self.max_batch = manifest.max_batch
        self._index = index
        self._log = new_log(flavour.module)
        with self._torch.cuda.device(index):
            self._runtime = flavour.module.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{name}: {flavour.name} refuses it ({self._log.last()})")
        self._contexts: OrderedDict[tuple[int, int], EngineContext] = OrderedDict()
        self._lock = threading.Lock()

    def context(self, batch: int, stream: int) -> EngineContext:
        """An execution context for one batch size; the least recently used one goes.

        Its memory is written by every run, so streams do not share one: their runs may overlap.
        Whoever captures a run of it in a graph keeps it: the graph uses its memory.
        """
        with self._lock:
            found = self._contexts.pop((batch, stream), None)
            if found is None:
                while len(self._contexts) >= _KEPT:
                    self._contexts.popitem(last=False)
                with self._torch.cuda.device(self._index):
                    found = self._made(batch)
            self._contexts[batch, stream] = found
            return found

    def _made(self, batch: int) -> EngineContext:
        if not 1 <= batch <= self.max_batch:
            raise EngineError(f"batch {batch} is not in 1..{self.max_batch} of the engine")
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"no execution context: {self._log.last()}")
        stream = self._torch.cuda.current_stream(self._index)
        # The profile of one image is tuned for it; a context keeps its profile and its shapes.
        profile = 0 if batch == 1 else len(profiles(self.max_batch)) - 1
        done = context.set_optimization_profile_async(profile, stream.cuda_stream)
        stream.synchronize()
        for name, shape in self.manifest.inputs.items():
            done = done and context.set_input_shape(name, (batch, *shape[1:]))
        if not done:
            raise EngineError(f"the engine refuses a batch of {batch}: {self._log.last()}")
        shapes = {
            name: (batch, *shape[1:])
            for name, shape in (self.manifest.inputs | self.manifest.outputs).items()
        }
        return EngineContext(context, shapes, self._index, self._log)


class EngineContext:
    """An execution context whose shapes are set once: runs of it may be captured in a graph."""

    def __init__(
        self, context: Any, shapes: dict[str, tuple[int | str, ...]], index: int, log: Any
    ) -> None:
        """Made by :class:`Engine`."""
        self._context = context
        self._shapes = shapes
        self._index = index
        self._log = log
        self._lock = threading.Lock()  # addresses belong to the run that is queued next

    def run(self, tensors: Mapping[str, Any], stream: int) -> None:
        """Queues one run.

        Args:
            tensors: torch tensors on the GPU by name, inputs and outputs, C-contiguous float32.
            stream: A cudaStream_t as an integer.

        Raises:
            EngineError: A tensor is missing or of another shape, or TensorRT refuses the run.
        """
        with self._lock:
            self._queue(tensors, stream)

    def _queue(self, tensors: Mapping[str, Any], stream: int) -> None:
        for name, shape in self._shapes.items():
            tensor = tensors[name]
            if (
                tuple(tensor.shape) != shape
                or str(tensor.dtype) != "torch.float32"
                or not tensor.is_contiguous()
                or tensor.device.index != self._index
            ):
                raise EngineError(
                    f"{name} must be float32 {list(shape)} on cuda:{self._index}, C-contiguous, "
                    f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
                )
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"TensorRT refuses to run: {self._log.last()}")


def open_engine(path: Path, *, index: int = 0, key: bytes | None = None) -> Engine:
    """Checks an engine file, then gives it to the runtime.

    Args:
        path: Written by `cae-fast build-engine`.
        index: Of the GPU.
        key: That must have signed it; None is the one of `CAE_ENGINE_KEY_FILE`, if set.

    Raises:
        EngineError: Damaged, tampered with, unsigned, or for another TensorRT or GPU.
        BackendUnavailable: No TensorRT, no GPU, or no torch with CUDA.
    """
    plan, manifest = read_engine(path, key=key if key is not None else signing_key())
    return run_engine(path, plan, manifest, index=index)


def run_engine(path: Path, plan: bytes, manifest: Manifest, *, index: int = 0) -> Engine:
    """Gives an engine that was read and checked to the runtime, without reading it again.

    Args:
        path: For messages.
        plan: Bytes that :func:`read_engine` returned with `manifest`.
        manifest: Of the plan.
        index: Of the GPU.

    Raises:
        EngineError: It is for another TensorRT or GPU.
        BackendUnavailable: No TensorRT, no GPU, or no torch with CUDA.
    """
    flavour = find_flavour(manifest.flavour)
    refuse_foreign(path, manifest, flavour, gpu_of(index))
    return Engine(plan, manifest, flavour, index)


def engine_module(engine: Engine, index: int) -> Any:
    """A classifier engine as a `torch.nn.Module`, images [N, C, S, S] -> logits [N, K].

    A module is what may be captured in the graph of a search. A graph uses the memory of the
    contexts that it captured, and nobody says when it goes: the module keeps its contexts.
    """
    torch = cuda_torch(index)
    kept: dict[tuple[int, int], EngineContext] = {}
    lock = threading.Lock()
    base: Any = torch.nn.Module

    class EngineModule(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            where = torch.empty(0, device=f"cuda:{index}")  # says where tensors belong
            self.register_buffer("where", where, persistent=False)

        def forward(self, images: Any) -> Any:
            classes = engine.manifest.outputs["logits"][1]
            logits = images.new_empty((len(images), classes))
            stream = torch.cuda.current_stream(index).cuda_stream
            for first in range(0, len(images), engine.max_batch):
                part = slice(first, first + engine.max_batch)
                tensors = {"images": images[part].contiguous(), "logits": logits[part]}
                use = len(tensors["images"]), stream
                with lock:
                    if use not in kept:
                        kept[use] = engine.context(*use)
                    kept[use].run(tensors, stream)
            return logits

    return EngineModule()
