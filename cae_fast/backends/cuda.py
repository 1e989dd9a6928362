# SPDX-License-Identifier: Apache-2.0
"""The GPU backend: the compiled engine's CUDA kernels, on a GPU or in the emulator."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _backend, ops
from ..arrays import Float32, Int32, is_device_array, kind_of, to_numpy
from ..errors import BackendUnavailable, ExtensionMissing
from ..memory import try_halves
from ..model import CAE
from .base import CodeArray, DecodeSession
from .rounds import NativeRounds, Rounds

if TYPE_CHECKING:
    from .._C_emu import DeviceArray, GpuEngine, GpuSearch, GpuSession

EMULATOR = "emu"
LEAST_CAPABILITY = (8, 0)
_LARGEST_BATCH = 65535  # what the engine's grids can count
_ALIGNMENT = 16  # of a tensor that kernels read in place
_INSTEAD = "use backend='torch' with device='cuda' for the GPU, or backend='cpu'"
_made_in: set[int] = set()  # processes that used a GPU: this one, and ancestors


def why_unusable(index: int) -> str:
    """Why this backend cannot run on a GPU, and "" where it can; a small kernel is run to see.

    Args:
        index: Of the GPU, as in `cae_fast.info()["cuda"]["devices"]`.
    """
    status = _backend.cuda_status()
    devices = status["devices"]
    if not status["built"]:
        return (
            f"the extension was built without CUDA ({status['reason']}): build it where nvcc 13.0 "
            "or newer works"
        )
    if _made_in - {os.getpid()}:
        return (
            "CUDA was in use before this process was forked: start processes by "
            "multiprocessing's 'spawn', or make the first explainer after the fork"
        )
    if not devices:
        return f"no usable GPU: {status['error'] or 'none found'}"
    if index >= len(devices):
        names = ", ".join(device["name"] for device in devices)
        return f"there is no GPU {index}, only {len(devices)}: {names}"
    name, capability = devices[index]["name"], tuple(devices[index]["capability"])
    if capability < LEAST_CAPABILITY:
        return (
            f"GPU {index} ({name}) is of compute capability {capability[0]}.{capability[1]}, "
            "8.0 or later is needed"
        )
    _made_in.add(os.getpid())
    try:
        _backend.check_cuda_device(index)
    except RuntimeError as error:
        return f"GPU {index} ({name}) fails a check: {str(error).splitlines()[0]}"
    return ""


def _asked_for(variable: str) -> bool:
    """Whether an environment variable is "1"; "0" is what it is by default."""
    value = os.environ.get(variable, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{variable} must be 0 or 1, got {value}")
    return value == "1"


def usable_gpu() -> int | None:
    """Index of the first GPU that this backend can run on, or None."""
    count = len(_backend.cuda_status()["devices"])
    return next((index for index in range(count) if not why_unusable(index)), None)


class CudaBackend:
    """:class:`~cae_fast.backends.base.Backend` on the compiled engine's CUDA kernels.

    Operands are halves, sums float32. Individual codes and images stay in device memory, as arrays
    of the engine with `__dlpack__`; what a method returns is complete, whichever stream reads it.
    Work is queued on the stream that torch has current, where torch uses the GPU, and else on the
    default stream. Threads are served in turns.

    Array arguments: arrays of the engine, float32 tensors of torch and CuPy, NumPy. In memory of
    this GPU they are used in place where they are C-contiguous and aligned to 16 bytes; other
    layouts, other GPUs and the host are copied.
    """

    name = "cuda"
    dtype: str = "float16"
    precision: str = "fp16"
    coarse_batch: int | None = None  # a round of the search costs more than points in it
    elsewhere = False  # the search's networks are others than the engine's
    early_exit = False  # graphs of a search leave rounds out that are not needed
    compact = False  # rounds of many images leave out those that are done

    def __init__(self, model: CAE, *, index: int | None, max_batch: int) -> None:
        """Packs the weights and copies them to the GPU.

        Args:
            model: Configuration and weights.
            index: Of the GPU; None is the emulator, for tests: exact, and very slow.
            max_batch: The most images or path points in flight; at most 65535, and fewer where
                their buffers do not fit, as the attribute then says.

        Raises:
            BackendUnavailable: It cannot run there; the message says why.
            OutOfMemory: The weights and buffers for one image do not fit.
        """
        self.index = index
        self.early_exit = _asked_for("CAE_GPU_EARLY_EXIT")
        self.compact = _asked_for("CAE_GPU_COMPACT")
        self.device = EMULATOR if index is None else f"cuda:{index}"
        if index is not None and (why := why_unusable(index)):
            raise BackendUnavailable(f"backend {self.name!r}: {why}; {_INSTEAD}")
        try:
            module = _backend.gpu_module(emulated=index is None)
        except ExtensionMissing as error:
            raise BackendUnavailable(
                f"backend {self.name!r} with device={self.device!r}: {error}"
            ) from error
        self.module = module  # of the engine, with its searches
        config, weights = model.config.to_dict(), dict(model.weights)

        def make(limit: int) -> tuple[int, GpuEngine]:
            return limit, module.GpuEngine(config, weights, max_batch=limit, device=index or 0)

        self._pid = os.getpid()
        if index is not None:
            _made_in.add(self._pid)
        self.max_batch, self.engine = try_halves(
            make, min(max_batch, _LARGEST_BATCH), what="the weights and buffers of the model"
        )
        nothing = np.empty(0, dtype=np.float32)
        self._nothing: DeviceArray = module.DeviceArray.from_host(nothing, self.engine.device)
        # Held until work is done: on another stream, the next would write into the same buffers.
        # Again by its own thread: a classifier may encode what it is given.
        self.turn = threading.RLock()

    def encode(self, images: Any) -> tuple[Any, Float32]:
        """Individual codes [N, 4w, S / 4, S / 4] on the device, class codes [N, D] as NumPy."""
        with self.working() as queue:
            individual, codes = self.engine.encode(self._argument(images), stream=queue)
            return individual, codes.numpy(queue)

    def encode_class(self, images: Any) -> Float32:
        """Class codes [N, D] as NumPy."""
        with self.working() as queue:
            return self.engine.encode_class(self._argument(images), stream=queue).numpy(queue)

    def decode(self, individual: Any, class_code: CodeArray, image_index: Int32) -> Any:
        """Images [M, C, S, S] on the device."""
        codes = np.ascontiguousarray(class_code, dtype=np.float32)
        with self.working() as queue:
            return self.engine.decode(self._argument(individual), codes, image_index, stream=queue)

    def lerp_codes(self, start: CodeArray, end: CodeArray, t: Float32) -> Float32:
        """Class codes [N, D] on straight paths; on the host, as for the CPU."""
        return ops.lerp_codes(start, end, t)

    def session(self, individual: Any, vertices: CodeArray, grid: int) -> DecodeSession:
        """Paths of a batch; what path points share is done here, once."""
        lines = np.ascontiguousarray(vertices, dtype=np.float32)
        with self.working() as queue:
            source = self._argument(individual)
            return CudaSession(self, self.engine.session(source, lines, grid, stream=queue))

    def rounds(self, search: GpuSearch) -> Rounds:
        """How a search is encoded and decoded."""
        return NativeRounds(search)

    def decode_points(self, session: GpuSession, image_index: Int32, step: Int32) -> DeviceArray:
        """Images [M, C, S, S] of points of a session's paths, on the device."""
        with self.working() as queue:
            return session.decode(image_index, step, stream=queue)

    @contextlib.contextmanager
    def working(self) -> Iterator[int]:
        """Gives the stream to queue on; this backend's GPU is torch's current one meanwhile.

        Waits for what was queued before it lets another thread in, also where an error came up.
        """
        self.queue()  # refuses a fork, before a lock that was held in its parent
        with self.turn, self._current():
            queue = self.queue()
            try:
                yield queue
            finally:
                self.wait(queue)

    def _current(self) -> contextlib.AbstractContextManager[Any]:
        cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
        if self.index is None or not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = cuda.device(self.index)
        return context

    def holds(self, array: Any) -> bool:
        """Whether an array is a torch tensor in memory of this device."""
        if kind_of(array) != "torch":
            return False
        return bool(array.device.type == "cpu" if self.index is None else array.is_cuda) and (
            self.index is None or array.device.index == self.index
        )

    def queue(self) -> int:
        """The stream to queue on, a handle; 0 is the default stream.

        Raises:
            BackendUnavailable: This process is a fork of the one that made the backend.
        """
        if os.getpid() != self._pid:
            raise BackendUnavailable(
                f"backend {self.name!r} was made before this process was forked, and CUDA does not "
                "survive that: make the explainer in the new process, and start processes by "
                "multiprocessing's 'spawn'"
            )
        cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
        if self.index is None or not hasattr(cuda, "current_stream") or not cuda.is_initialized():
            return 0
        return int(cuda.current_stream(self.index).cuda_stream)

    def wait(self, queue: int) -> None:
        """Waits for what was queued."""
        self._nothing.numpy(queue)

    def _argument(self, array: Any) -> Any:
        """An array that the engine takes; see the class for what is copied."""
        kind = kind_of(array)
        if kind == "torch":
            array = array.detach()
            if self.index is None or not array.is_cuda:
                return array.cpu()
            array = array.to(self.device).contiguous()
            return array.clone() if array.data_ptr() % _ALIGNMENT else array
        if kind == "cupy":
            if self.index != array.device.id:
                return to_numpy(array)
            import cupy

            array = cupy.ascontiguousarray(array)
            return array.copy() if array.data.ptr % _ALIGNMENT else array
        if is_device_array(array) and (
            type(array) is not type(self._nothing) or array.device != self._nothing.device
        ):
            return to_numpy(array)
        return array


class CudaSession:
    """Paths of a batch of images, on the device."""

    def __init__(self, backend: CudaBackend, session: GpuSession) -> None:
        """Made by :meth:`CudaBackend.session`."""
        self._backend = backend
        self._session = session

    def decode(self, image_index: Int32, step: Int32) -> DeviceArray:
        """Images [M, C, S, S] on the device."""
        return self._backend.decode_points(self._session, image_index, step)
