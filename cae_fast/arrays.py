# SPDX-License-Identifier: Apache-2.0
"""Kinds of arrays that users bring: NumPy, torch, CuPy, anything with DLPack.

And the native engine's own in a GPU's memory. Neither torch nor CuPy is imported here.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["numpy", "torch", "cupy"]
Float32: TypeAlias = npt.NDArray[np.float32]
Int32: TypeAlias = npt.NDArray[np.int32]

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Luma of red, green and blue by ITU-R BT.601, what image libraries use."""

PIXEL_SLACK = 1e-3
"""How far outside [-1, 1] a pixel may lie: resampling and 8-bit round trips overshoot by less."""

_NATIVE_MODULES = ("cae_fast._C", "cae_fast._C_emu")
_DLPACK_CUDA = 2


def is_module(value: object) -> bool:
    """Whether a value is a ``torch.nn.Module``; torch is looked up, never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "nn") and isinstance(value, torch.nn.Module)


def is_device_array(value: object) -> bool:
    """Whether a value is the native engine's own array, in memory of a GPU or of the emulator."""
    own = type(value)
    return own.__name__ == "DeviceArray" and own.__module__ in _NATIVE_MODULES


def kind_of(array: object) -> Kind:
    """Which library an array belongs to.

    Everything that is neither torch nor CuPy counts as NumPy: who asks for no kind gets a native
    device array as NumPy.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and isinstance(array, torch.Tensor):
        return "torch"
    if type(array).__module__.split(".")[0] == "cupy":
        return "cupy"
    return "numpy"


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """Any array as a NumPy array on the host: without a copy where its memory is host memory.

    Raises:
        TypeError: The value cannot be read as an array.
    """
    kind = kind_of(array)
    if kind == "torch":
        host = array.detach().cpu()
        return cast(
            "npt.NDArray[Any]", (host.float() if host.dtype.itemsize == 2 else host).numpy()
        )
    if kind == "cupy":
        return cast("npt.NDArray[Any]", array.get())
    if is_device_array(array):
        return cast("npt.NDArray[Any]", array.numpy())
    if not hasattr(array, "__array__") and hasattr(array, "__dlpack__"):
        try:
            return np.from_dlpack(array)
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"its memory cannot be read from the host ({error})") from error
    return np.asarray(array)


def like(array: Any, template: Any) -> Any:
    """An array as the kind of `template`, on the device of `template`.

    Memory that is there already is shared.
    """
    kind = kind_of(template)
    if kind == "torch":
        return as_kind(array, kind).to(template.device)
    if kind == "cupy":
        there = is_device_array(array) and array.device == template.device.id
        with template.device:
            return as_kind(array if there else to_numpy(array), kind)
    return to_numpy(array)


def as_kind(array: Any, kind: Kind) -> Any:
    """An array as another kind.

    To torch and CuPy by DLPack from a device array, sharing its memory; else through the host.
    """
    if kind_of(array) == kind:
        return to_numpy(array) if kind == "numpy" else array
    if kind == "numpy":
        return to_numpy(array)
    on_gpu = is_device_array(array) and array.__dlpack_device__()[0] == _DLPACK_CUDA
    if kind == "torch":
        import torch

        if kind_of(array) == "cupy":
            return torch.utils.dlpack.from_dlpack(array)
        if is_device_array(array) and (not on_gpu or torch.cuda.is_available()):
            return torch.utils.dlpack.from_dlpack(array)
        host = np.ascontiguousarray(to_numpy(array))
        return torch.from_numpy(host if host.flags.writeable else host.copy())
    import cupy

    if kind_of(array) == "torch" and array.is_cuda:
        return cupy.from_dlpack(array.detach())
    if on_gpu:
        return cupy.from_dlpack(array)
    return cupy.asarray(to_numpy(array))


def checked_images(images: Any, shape: tuple[int, int, int], argument: str = "images") -> Float32:
    """Images as a float32 NumPy array; pixel values are not looked at.

    Args:
        images: Array of any kind and layout, [N, C, H, W] float32; N may be 0.
        shape: The (C, H, W) wanted.
        argument: Name used in error messages.

    Returns:
        [N, C, H, W]; shares the caller's memory where that is host memory, with its strides.

    Raises:
        ValueError: Not an array, or of another rank, dtype or shape.
    """
    wanted = _wanted_images(shape)
    if isinstance(images, str | bytes) or not any(
        hasattr(images, name) for name in ("__array__", "__dlpack__", "__array_interface__")
    ):
        raise ValueError(f"{argument} must be an array, {wanted}, got {type(images).__name__}")
    dtype = str(getattr(images, "dtype", "unknown"))
    try:
        array = to_numpy(images)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be an array, {wanted}: {error}") from None
    if dtype.removeprefix("torch.") != "float32" or array.dtype != np.float32:
        raise ValueError(f"{argument} must be {wanted}, got dtype {dtype.removeprefix('torch.')}")
    _check_shape(array, shape, argument)
    return array


def checked_tensor(images: Any, shape: tuple[int, int, int], argument: str = "images") -> Any:
    """:func:`checked_images` of a torch tensor, which stays on its device.

    Returns:
        [N, C, H, W], C-contiguous and aligned to 16 bytes; shares memory where that is so already.

    Raises:
        ValueError: Of another rank, dtype or shape.
    """
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "float32":
        raise ValueError(f"{argument} must be {_wanted_images(shape)}, got dtype {dtype}")
    _check_shape(images, shape, argument)
    images = images.detach().contiguous()
    return images.clone() if images.data_ptr() % 16 else images


def _wanted_images(shape: tuple[int, int, int]) -> str:
    return f"float32 [N, {shape[0]}, {shape[1]}, {shape[2]}] in [-1, 1] (see cae_fast.load_images)"


def _check_shape(array: Any, shape: tuple[int, int, int], argument: str) -> None:
    if array.ndim != 4 or tuple(array.shape[1:]) != shape:
        wanted = _wanted_images(shape)
        raise ValueError(f"{argument} must be {wanted}, got shape {list(array.shape)}")


def checked_codes(codes: Any, shape: tuple[int, ...], argument: str) -> Float32:
    """Codes as a C-contiguous float32 NumPy array.

    Args:
        codes: Array of any kind, [N, ...] floating; N may be 0.
        shape: The shape wanted of each.
        argument: Name used in error messages.

    Raises:
        ValueError: Not an array, of another rank, dtype or shape, or with NaN or Inf.
    """
    wanted = f"float [N, {', '.join(map(str, shape))}]"
    try:
        array = to_numpy(codes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be {wanted}: {error}") from None
    if array.dtype.kind != "f" or array.shape[1:] != shape or array.ndim != len(shape) + 1:
        raise ValueError(f"{argument} must be {wanted}, got {array.dtype} {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{argument} holds NaN or Inf")
    return np.ascontiguousarray(array, dtype=np.float32)


def pixel_fault(image: Any) -> str | None:
    """Why the pixels of an image [C, H, W], NumPy or torch, cannot be explained; None: they can."""
    low, high = float(image.min()), float(image.max())
    if not np.isfinite(low) or not np.isfinite(high):
        return f"{int((~np.isfinite(to_numpy(image))).sum())} pixels are NaN or Inf"
    if low < -1 - PIXEL_SLACK or high > 1 + PIXEL_SLACK:
        return f"pixels lie in [{low:g}, {high:g}], expected [-1, 1]"
    return None


def pixel_faults(images: Any) -> list[str | None]:
    """:func:`pixel_fault` of each image [N, C, H, W].

    Of a tensor, two numbers an image leave its device, and those images that are not finite.
    """
    if kind_of(images) != "torch" or not len(images):
        return [pixel_fault(image) for image in images]
    import torch

    flat = images.flatten(1)
    ranges = to_numpy(torch.stack([flat.amin(dim=1), flat.amax(dim=1)], dim=1))  # NaN passes
    good = (np.abs(ranges) <= 1 + PIXEL_SLACK).all(axis=1)
    return [None if good[i] else pixel_fault(image) for i, image in enumerate(images)]


def finite_images(images: Any, shape: tuple[int, int, int], argument: str = "images") -> Float32:
    """:func:`checked_images`, of which every pixel is looked at as well.

    Raises:
        ValueError: As there; or pixels of an image are NaN, Inf or out of range.
    """
    array = checked_images(images, shape, argument)
    for i, image in enumerate(array):
        if fault := pixel_fault(image):
            raise ValueError(f"{argument}: image {i}: {fault}")
    return array


@lru_cache(maxsize=64)
def resize_weights(source: int, target: int) -> Float32:
    """Matrix [target, source] of a bilinear resampling, antialiased.

    Half-pixel centres; the triangle is as wide as a target pixel where that is the larger.
    """
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None, :] + 0.5 - centres[:, None]) / support
    weights = np.maximum(1.0 - distance, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def with_grey(images: Any, good: npt.NDArray[np.bool_]) -> Any:
    """Images [n, C, S, S], C-contiguous; grey where not good, so that others keep their company."""
    if kind_of(images) != "torch":
        images = np.ascontiguousarray(images)
        return images if good.all() else np.where(good[:, None, None, None], images, np.float32(0))
    if good.all():
        return images
    import torch

    there = torch.from_numpy(good).to(images.device)
    return torch.where(there[:, None, None, None], images, 0.0)


def put_rows(
    target: Any, rows: npt.NDArray[np.int64], values: Any, chosen: npt.NDArray[np.bool_]
) -> None:
    """Writes the `chosen` rows of `values` into `rows` of `target`, both of one kind."""
    if kind_of(target) != "torch":
        target[rows] = values[chosen]
        return
    import torch

    there = torch.from_numpy(rows).to(target.device)
    target[there] = values[torch.from_numpy(np.flatnonzero(chosen)).to(target.device)]
