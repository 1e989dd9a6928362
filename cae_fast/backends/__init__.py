# SPDX-License-Identifier: Apache-2.0
"""Backends: the same networks on different machinery, chosen by name."""

from __future__ import annotations

import warnings

from ..errors import missing_extra
from ..model import CAE, CAEConfig
from .base import Backend, DecodeSession

__all__ = ["BACKENDS", "Backend", "DecodeSession", "default_max_batch", "select_backend"]

BACKENDS = ("auto", "cpu", "cuda", "tensorrt", "torch")
_PRECISIONS = {  # dtype that is asked for; None leaves it to the backend
    "auto": None,
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "exact": "float32",
    "float32": "float32",
    "fp64": "float64",
    "float64": "float64",
}
_LARGEST_BATCH = 2**31 - 1  # what indexes of images and points can count
_WORKSPACE_BYTES = 256 * 1024**2


def default_max_batch(config: CAEConfig) -> int:
    """Images in flight whose widest activations stay near 256 MiB.

    8 at the reference size, 64 for small images.
    """
    widest = 4 * config.channels * config.image_size**2 * 2
    return max(1, min(64, _WORKSPACE_BYTES // widest))


def select_backend(
    name: str,
    model: CAE,
    *,
    device: str | None = None,
    precision: str = "auto",
    max_batch: int | None = None,
) -> Backend:
    """Makes the backend of a name.

    Args:
        name: "cpu", "cuda" (the native engine on an NVIDIA GPU of compute capability 8.0 or later),
            "torch", "tensorrt" (engines of the folder `CAE_ENGINES`, built where none fits), or
            "auto": "cuda" where it can run, computes a small network as the CPU does, and `device`
            and `precision` allow, else "cpu".
        model: Configuration and weights.
        device: Of "torch", what torch knows. Of "cuda", a GPU as "cuda:1" or "1" (None and "cuda"
            are the first; for "auto" the first that is usable), or "emu": its kernels in an
            emulator on the CPU, for tests, which only a build for tests has. "cpu" or None for
            "cpu".
        precision: "auto"; "fp16" (what "cuda" computes in: halves as operands, float32 sums; of
            "tensorrt" the default); "fp32"; "exact" (float32 by direct sums: "cpu" then has a third
            of the rounding error and takes more than three times the time; "torch" sums directly
            anyway), or "fp64" ("torch" only).
        max_batch: The most images or path points in flight; None chooses by the size of the model.

    Returns:
        The backend.

    Raises:
        ValueError: Unknown name, precision or device, or `max_batch` out of range.
        BackendUnavailable: It cannot run here; the message says why and what would make it
            available.
        MissingExtra: "torch" without torch.
        OutOfMemory: The model does not fit, not even with `max_batch` 1.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    if max_batch is None:
        max_batch = default_max_batch(model.config)
    elif (
        isinstance(max_batch, bool)
        or not isinstance(max_batch, int)
        or not 1 <= max_batch <= _LARGEST_BATCH
    ):
        raise ValueError(f"max_batch must be an integer in 1..{_LARGEST_BATCH}, got {max_batch!r}")
    if device is not None:
        device = str(device)
    if name == "auto":
        name, device = _choose(device, precision)
    _check_precision(name, precision)
    if name == "torch":
        return _torch_backend(model, device, _PRECISIONS[precision] or "float32", max_batch)
    if name == "cuda":
        from .cuda import EMULATOR, CudaBackend

        index = None if device == EMULATOR else _gpu_index(device)
        return CudaBackend(model, index=index, max_batch=max_batch)
    if name == "tensorrt":
        from .tensorrt import TensorRTBackend

        return TensorRTBackend(
            model,
            index=_gpu_index(device),
            max_batch=max_batch,
            precision="fp32" if _PRECISIONS[precision] == "float32" else "fp16",
        )
    if device not in (None, "cpu"):
        raise ValueError(f"device must be 'cpu' for backend 'cpu', got {device!r}")
    from .native import NativeBackend

    return NativeBackend(model, max_batch=max_batch, exact=precision == "exact")


def _choose(device: str | None, precision: str) -> tuple[str, str | None]:
    """Backend and device that "auto" means."""
    from . import cuda_check
    from .cuda import EMULATOR, usable_gpu

    if device is None:
        if _PRECISIONS[precision] not in (None, "float16"):
            return "cpu", None
        gpu = usable_gpu()
        if _PRECISIONS[precision] is None:
            if gpu is None:
                return "cpu", None
            if why := cuda_check.why_wrong(gpu):
                warnings.warn(
                    f"GPU {gpu} is left alone, the CPU explains: {why}",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return "cpu", None
        return "cuda", f"cuda:{gpu or 0}"
    if device == "cpu":
        return "cpu", device
    if device == EMULATOR or device.isdecimal() or device.startswith("cuda"):
        return "cuda", device
    raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N' for backend 'auto', got {device!r}")


def _check_precision(name: str, precision: str) -> None:
    """Refuses a precision that a backend does not have, naming the one that has."""
    dtype = _PRECISIONS[precision]
    served = {
        "cpu": ("float32",),
        "cuda": ("float16",),
        "tensorrt": ("float16", "float32"),
        "torch": ("float32", "float64"),
    }[name]
    if dtype is None or dtype in served:
        return
    has = {"float16": "'cuda' or 'tensorrt'", "float32": "'cpu' or 'torch'", "float64": "'torch'"}[
        dtype
    ]
    own = {
        "cpu": "fp32",
        "cuda": "fp16",
        "tensorrt": "fp16 and fp32",
        "torch": "fp32 and fp64",
    }[name]
    raise ValueError(f"precision {precision!r} needs backend={has}; {name!r} computes in {own}")


def _gpu_index(device: str | None) -> int:
    """Index in "cuda", "cuda:N" or "N"."""
    digits = "0" if device in (None, "cuda") else str(device).removeprefix("cuda:")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 4:
        raise ValueError(f"device must be 'cuda', 'cuda:N' or N on a GPU, got {device!r}")
    return int(digits)


def _torch_backend(model: CAE, device: str | None, dtype: str, max_batch: int) -> Backend:
    try:
        from .torch import TorchBackend
    except ImportError:
        raise missing_extra("torch", "torch") from None
    return TorchBackend(model, device=device, dtype=dtype, max_batch=max_batch)
