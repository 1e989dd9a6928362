# SPDX-License-Identifier: Apache-2.0
"""Backends: the same networks on different machinery, chosen by name."""

from __future__ import annotations

from ..errors import BackendUnavailable, missing_extra
from ..model import CAE, CAEConfig
from .base import Backend, DecodeSession

__all__ = ["BACKENDS", "Backend", "DecodeSession", "default_max_batch", "select_backend"]

BACKENDS = ("auto", "cpu", "cuda", "tensorrt", "torch")
_PRECISIONS = {
    "auto": "float32",
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
        name: "auto" (the native GPU backend where it can run, else "cpu"), "cpu", "cuda", "torch"
            or "tensorrt".
        model: Configuration and weights.
        device: Device of the "torch" backend; "cpu" or None for "cpu".
        precision: "auto", "fp32", "exact" (float32 by direct sums: "cpu" then has a third of the
            rounding error and takes more than three times the time; "torch" sums directly anyway),
            or "fp64" ("torch" only).
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
    dtype = _PRECISIONS[precision]
    if name == "torch":
        return _torch_backend(model, device, dtype, max_batch)
    on_gpu = device is not None and device.startswith("cuda")
    if name in ("cuda", "tensorrt") or (name == "auto" and on_gpu):
        raise BackendUnavailable(_why_not("cuda" if name == "auto" else name))
    if device not in (None, "cpu"):
        raise ValueError(f"device must be 'cpu' for backend {name!r}, got {device!r}")
    if dtype != "float32":
        raise ValueError(
            f"precision {precision!r} needs backend='torch'; {name!r} computes in fp32"
        )
    from .native import NativeBackend

    return NativeBackend(model, max_batch=max_batch, exact=precision == "exact")


def _torch_backend(model: CAE, device: str | None, dtype: str, max_batch: int) -> Backend:
    try:
        from .torch import TorchBackend
    except ImportError:
        raise missing_extra("torch", "torch") from None
    return TorchBackend(model, device=device, dtype=dtype, max_batch=max_batch)


def _why_not(name: str) -> str:
    """Why a GPU backend cannot run, and what would help."""
    instead = "use backend='torch' with device='cuda' for the GPU, or backend='cpu'"
    if name == "tensorrt":
        return f"backend 'tensorrt' is not part of this version of cae_fast; {instead}"
    from .. import _backend

    status = _backend.cuda_status()
    if not status["built"]:
        seen = f"the extension was built without CUDA ({status['reason']})"
    elif status["devices"]:
        seen = f"GPU found: {status['devices'][0]['name']}"
    else:
        seen = f"no usable GPU: {status['error'] or 'none found'}"
    return (
        "backend 'cuda': the networks have no CUDA kernels in this version of cae_fast; "
        f"{seen}; {instead}"
    )
