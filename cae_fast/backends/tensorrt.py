# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines as a backend: they encode and decode, native kernels step the search.

Everything is queued on one stream, in memory that torch and the native engine share by DLPack, and
is captured with the classifier in the same CUDA graph as the native backend's search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from ..arrays import Float32, Int32, to_numpy
from ..errors import BackendUnavailable
from ..model import CAE
from .base import CodeArray, DecodeSession
from .cuda import CudaBackend
from .rounds import Rounds

if TYPE_CHECKING:
    from .._C_emu import DeviceArray, GpuSearch
    from ..engines.runtime import Context, Network

_DTYPES = {"fp16": "float16", "fp32": "float32"}


class TensorRTBackend(CudaBackend):
    """:class:`~cae_fast.backends.base.Backend` on two engines, of the encoders and of the decoder.

    Images and individual codes are torch tensors on the GPU. The native engine is there as well,
    for one row at a time: its search is what steps.
    """

    name = "tensorrt"
    elsewhere = True

    def __init__(
        self,
        model: CAE,
        *,
        index: int | None,
        max_batch: int,
        precision: str = "fp16",
        networks: tuple[Network, Network] | None = None,
    ) -> None:
        """Finds engines, or builds them, and gives them to the runtime.

        Args:
            model: Configuration and weights.
            index: Of the GPU; None is the emulator, for tests, which bring their `networks`.
            max_batch: The most images or path points in flight; engines are built for it.
            precision: "fp16" or "fp32".
            networks: Encoder and decoder; None finds them.

        Raises:
            BackendUnavailable: It cannot run there; the message says why.
            EngineError: No engine can be built.
            OutOfMemory: The weights and buffers for one image do not fit.
        """
        if networks is None and index is not None:
            networks = _engines(model, index, max_batch, precision)
        if networks is None:
            raise BackendUnavailable("backend 'tensorrt' runs on NVIDIA GPUs, not in the emulator")
        import torch

        super().__init__(model, index=index, max_batch=1)
        self._torch: Any = torch
        self._where = "cpu" if index is None else f"cuda:{index}"
        self._shape = model.config.individual_shape
        self._image_shape = model.config.image_shape
        self._code_dim = model.config.code_dim
        self._encoder, self._decoder = networks
        self.max_batch = min(max_batch, self._encoder.max_batch, self._decoder.max_batch)
        self.precision = precision
        self.dtype = _DTYPES[precision]
        self._at_start = self._empty(self.max_batch).zero_()

    def encode(self, images: Any) -> tuple[Any, Float32]:
        """Individual codes [N, 4w, S / 4, S / 4] on the device, class codes [N, D] as NumPy."""
        with self.working() as queue:
            source = self._tensor(images)
            individual = self._empty(len(source), *self._shape)
            codes = self._empty(len(source), self._code_dim)
            self.run_encoder(source, individual, codes, queue)
            self.wait(queue)
            return individual, to_numpy(codes)

    def encode_class(self, images: Any) -> Float32:
        """Class codes [N, D] as NumPy."""
        return self.encode(images)[1]

    def decode(self, individual: Any, class_code: CodeArray, image_index: Int32) -> Any:
        """Images [M, C, S, S] on the device."""
        with self.working() as queue:
            source = self._tensor(individual)
            codes = self._tensor(np.ascontiguousarray(class_code, dtype=np.float32))
            rows = self._torch.as_tensor(np.asarray(image_index), device=self._where)
            images = self._empty(len(codes), *self._image_shape)
            self.run_decoder(source, rows, codes, images, self.gather_space(len(codes)), queue)
            return images

    def session(self, individual: Any, vertices: CodeArray, grid: int) -> DecodeSession:
        """Paths of a batch."""
        return TensorRTSession(self, individual, vertices, grid)

    def rounds(self, search: GpuSearch) -> Rounds:
        """How a search is encoded and decoded."""
        return EngineRounds(self, search)

    def run_encoder(self, images: Any, individual: Any, codes: Any, queue: int) -> list[Context]:
        """Queues images [N, ...] -> individual [N, ...], codes [N, D], all tensors."""
        used = []
        for first in range(0, len(images), self.max_batch):
            part = slice(first, first + self.max_batch)
            used.append(self._encoder.context(len(images[part]), queue))
            tensors = {
                "images": images[part],
                "individual": individual[part],
                "class_code": codes[part],
            }
            used[-1].run(tensors, queue)
        return used

    def run_decoder(
        self, individual: Any, rows: Any, codes: Any, images: Any, gathered: Any, queue: int
    ) -> list[Context]:
        """Queues individual[rows] recombined with codes [M, D] -> images [M, ...], all tensors."""
        used = []
        for first in range(0, len(codes), self.max_batch):
            part = slice(first, first + self.max_batch)
            count = len(codes[part])
            self._torch.index_select(individual, 0, rows[part], out=gathered[:count])
            used.append(self._decoder.context(count, queue))
            tensors = {
                "individual": gathered[:count],
                "class_code": codes[part],
                "exemplar_code": codes[part],  # at t = 0, which is the class code bit for bit
                "t": self._at_start[:count],
                "images": images[part],
            }
            used[-1].run(tensors, queue)
        return used

    def gather_space(self, points: int) -> Any:
        """Memory for the individual codes of so many points in flight."""
        return self._empty(min(points, self.max_batch), *self._shape)

    def shared(self, array: DeviceArray) -> Any:
        """An array of the native engine as a tensor in the same memory."""
        return self._torch.from_dlpack(array)

    def _empty(self, *shape: int) -> Any:
        return self._torch.empty(shape, dtype=self._torch.float32, device=self._where)

    def _tensor(self, array: Any) -> Any:
        """Any array as a C-contiguous float32 tensor on the device."""
        array = self._argument(array)
        if isinstance(array, np.ndarray):
            array = np.require(array, requirements=["C", "W"])  # torch warns of read-only memory
        tensor = self._torch.as_tensor(array) if isinstance(array, np.ndarray) else array
        if not isinstance(tensor, self._torch.Tensor):
            tensor = self._torch.from_dlpack(tensor)
        return tensor.to(device=self._where, dtype=self._torch.float32).contiguous()


class TensorRTSession:
    """Paths of a batch of images."""

    def __init__(
        self, backend: TensorRTBackend, individual: Any, vertices: CodeArray, grid: int
    ) -> None:
        """Made by :meth:`TensorRTBackend.session`."""
        self._backend = backend
        self._individual = individual
        self._lines = np.ascontiguousarray(vertices, dtype=np.float32)
        self._grid = grid

    def decode(self, image_index: Int32, step: Int32) -> Any:
        """Images [M, C, S, S] on the device."""
        codes = ops.path_codes(self._lines, image_index, step, grid=self._grid)
        return self._backend.decode(self._individual, codes, image_index)


class EngineRounds:
    """:class:`~cae_fast.backends.rounds.Rounds` by engines, in memory that is planned at once.

    What a captured graph works in is kept as long as this is: buffers and execution contexts.
    """

    def __init__(self, backend: TensorRTBackend, search: GpuSearch) -> None:
        """Of a search that was planned for networks elsewhere."""
        self._backend = backend
        self._search = search
        self._images = backend.shared(search.images)
        self._codes = backend.shared(search.class_codes)
        count = len(search.images)
        self._individual = backend._empty(count, *backend._shape)
        self._gathered = backend.gather_space(count * search.slots)
        self._used: dict[int, Context] = {}

    def begin(self, logits: Any, given: bool, queue: int) -> None:
        """See :class:`Rounds`."""
        used = self._backend.run_encoder(self._images, self._individual, self._codes, queue)
        self._keep(used)
        self._search.begin(logits, given, stream=queue)

    def decode(self, index: int, points: int, queue: int) -> DeviceArray:
        """See :class:`Rounds`."""
        codes, rows, images, finite = self._search.place(index, points, stream=queue)
        pictures = self._backend.shared(images)
        used = self._backend.run_decoder(
            self._individual,
            self._backend.shared(rows),
            self._backend.shared(codes),
            pictures,
            self._gathered,
            queue,
        )
        self._keep(used)
        good = pictures.isfinite().flatten(1).all(dim=1)
        self._backend.shared(finite).copy_(good)
        return images

    def _keep(self, contexts: list[Context]) -> None:
        self._used.update((id(context), context) for context in contexts)


def _engines(model: CAE, index: int, max_batch: int, precision: str) -> tuple[Network, Network]:
    """The engines for a GPU of this machine."""
    from ..engine_files import signing_key
    from ..engines.build import EngineRequest
    from ..engines.cache import engine_for
    from ..engines.flavours import find_flavour
    from ..engines.runtime import Engine, cuda_torch, gpu_of

    try:
        flavour, gpu = find_flavour(), gpu_of(index)
        cuda_torch(index)
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"backend 'tensorrt': {error}; use backend='cuda' or backend='cpu'"
        ) from error
    key = signing_key()
    encoder, decoder = (
        Engine(
            *engine_for(
                EngineRequest(model, part, precision=precision, max_batch=max_batch),
                flavour,
                gpu,
                key,
            ),
            flavour,
            index,
        )
        for part in ("encoder", "decoder")
    )
    return encoder, decoder
