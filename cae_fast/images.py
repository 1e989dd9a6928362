# SPDX-License-Identifier: Apache-2.0
"""Turn files, PIL images and arrays into the ``[N, C, H, W]`` float32 arrays the models take.

What becomes of each kind of image (there is no silent conversion beside these):

====================================  ==========================================================
seen                                  becomes
====================================  ==========================================================
1-bit, 8-bit grey                     1 channel; 0 -> -1, the highest value -> 1
16-bit grey                           1 channel, all 65536 levels kept, 65535 -> 1 (a TIFF of 9 to
                                      15 bits: its own highest value). No windowing: a 12-bit
                                      picture stored in a 16-bit file stays as dark as it is
32-bit integer grey                   as 16-bit grey; refused where a value is outside [0, 65535]
float grey                            [0, 1] -> [-1, 1]; refused where a value is outside [0, 1]
8-bit RGB                             3 channels
16-bit RGB, RGBA, grey + alpha        Pillow keeps the upper 8 bits of each channel
palette                               RGB, also where all its colours are grey
CMYK, YCbCr, LAB                      RGB by Pillow's plain formulas; ICC profiles are not applied
alpha, or one transparent colour      composited over black (``channels=4``: RGBA is kept as it is)
EXIF orientation                      applied: the picture stands as viewers show it
animated, or several pages            refused (the preview pictures of an MPO camera file are not
                                      pages: its first picture is read)
====================================  ==========================================================

Only PNG, JPEG, WebP, BMP, TIFF, PPM/PGM/PBM and still GIF files are opened, and none whose header
announces more than ``max_pixels`` pixels. Colour becomes grey by the weights 0.299, 0.587, 0.114;
grey becomes colour by repetition. Resizing is bicubic with antialiasing, in float32, so that
16-bit levels survive it; the result is clipped to [-1, 1].
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arrays import GREY_WEIGHTS
from .decoding import DEFAULT_MAX_PIXELS, decode_image, path_name, pil_to_float
from .errors import ImageDecodeError

__all__ = ["decode_image", "iter_batches", "load_images", "load_original", "to_uint8"]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]"
Fit: TypeAlias = Literal["stretch", "crop", "pad"]
OnError: TypeAlias = Literal["raise", "collect"]
FloatArray: TypeAlias = NDArray[np.float32]

_LUMA = np.array(GREY_WEIGHTS, dtype=np.float32)
_MAX_SIZE = 16384


@overload
def load_images(
    source: ImageSource | Sequence[ImageSource],
    *,
    size: int | None = ...,
    channels: int | None = ...,
    max_pixels: int = ...,
    fit: Fit = ...,
    on_error: Literal["raise"] = ...,
) -> FloatArray: ...


@overload
def load_images(
    source: ImageSource | Sequence[ImageSource],
    *,
    size: int | None = ...,
    channels: int | None = ...,
    max_pixels: int = ...,
    fit: Fit = ...,
    on_error: Literal["collect"],
) -> tuple[FloatArray, list[str | None]]: ...


@overload
def load_images(
    source: ImageSource | Sequence[ImageSource],
    *,
    size: int | None = ...,
    channels: int | None = ...,
    max_pixels: int = ...,
    fit: Fit = ...,
    on_error: OnError,
) -> FloatArray | tuple[FloatArray, list[str | None]]: ...


def load_images(
    source: ImageSource | Sequence[ImageSource],
    *,
    size: int | None = None,
    channels: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    fit: Fit = "stretch",
    on_error: OnError = "raise",
) -> FloatArray | tuple[FloatArray, list[str | None]]:
    """Read images as float32 in [-1, 1]; the module's text lists every conversion.

    Args:
        source: One image or a list of them: a path, the bytes of an image file, a PIL image, a
            uint8 or uint16 array [H, W] or [H, W, C], or a float array [H, W] or [C, H, W] in
            [-1, 1]; or a batch, [N, H, W, C] for integers, [N, C, H, W] for floats.
        size: Side of the square result in pixels; None keeps the size, which all images must share.
        channels: 1..4; 2 is only for arrays of 2 channels, 4 for arrays of 4 and RGBA images.
            None keeps 1 for grey and 3 for colour; where both occur, 3.
        max_pixels: Largest width x height of a file, checked in its header before decoding.
        fit: What happens to images that are not square: "stretch" scales each side for itself and
            loses nothing, "crop" cuts the centre out of the longer side, "pad" adds black.
        on_error: "raise" stops at the first image that cannot be used; "collect" goes on.

    Returns:
        A new array [N, C, H, W], float32. With on_error="collect" a pair of it and N reasons: None
        for a good image, one line of text for a refused one, whose pixels are zeros.

    Raises:
        ImageDecodeError: A file cannot be read as an image. With "collect" only where no image is
            good and `size` or `channels` leave the shape of the result open.
        ValueError: Wrong type, shape, dtype or range, or sizes that differ (named in the text).
    """
    _check_options(size, channels, max_pixels, fit, on_error)
    images, reasons = _load_all(_as_items(source), 0, size, channels, max_pixels, fit, on_error)
    return images if on_error == "raise" else (images, reasons)


def _load_all(
    items: list[Any],
    first: int,  # number of items[0] in error texts
    size: int | None,
    channels: int | None,
    max_pixels: int,
    fit: Fit,
    on_error: OnError,
) -> tuple[FloatArray, list[str | None]]:
    rows: list[FloatArray | None] = []
    reasons: list[str | None] = []
    for position, item in enumerate(items, start=first):
        try:
            rows.append(_load_one(item, position, size, channels, max_pixels, fit))
            reasons.append(None)
        except ValueError as error:
            if on_error == "raise":
                raise
            rows.append(None)
            reasons.append(str(error))
    return _stack(rows, reasons, size, channels), reasons


def iter_batches(
    sources: Sequence[ImageSource],
    batch_size: int,
    *,
    size: int,
    channels: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    fit: Fit = "stretch",
    on_error: OnError = "raise",
) -> Iterator[tuple[FloatArray, list[str | None]]]:
    """Read many images in order, `batch_size` at a time, holding only one batch in memory.

    Args:
        sources: The images, as in `load_images`.
        batch_size: Images per batch, at least 1; the last batch may be smaller.
        size: As in `load_images`, but required, so that all batches have one shape.
        channels: As in `load_images`, but required.
        max_pixels: As in `load_images`.
        fit: As in `load_images`.
        on_error: As in `load_images`; a batch without any good image is all zeros.

    Yields:
        Pairs of images [B, C, size, size], float32, and B reasons, all None with "raise".

    Raises:
        ImageDecodeError: A file cannot be read as an image and on_error is "raise".
        ValueError: As in `load_images`, or batch_size is below 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    _check_options(size, channels, max_pixels, fit, on_error)
    items = _as_items(sources)
    for start in range(0, len(items), batch_size):
        chunk = items[start : start + batch_size]
        yield _load_all(chunk, start, size, channels, max_pixels, fit, on_error)


def load_original(
    source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read one image at its own size for showing it, by the same conversions as `load_images`.

    Args:
        source: One image, as in `load_images`, of 1 or 3 channels.
        max_pixels: As in `load_images`.

    Returns:
        RGB pixels [H, W, 3], uint8.

    Raises:
        ImageDecodeError: The file cannot be read as an image.
        ValueError: Wrong type, shape, dtype, range or number of channels.
    """
    images = to_uint8(load_images(source, channels=3, max_pixels=max_pixels))
    if len(images) != 1:
        raise ValueError(f"source must be one image, got {len(images)}")
    first: NDArray[np.uint8] = images[0]
    return first


def to_uint8(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert model images to 8-bit pixels, the inverse of `load_images` for 8-bit images.

    Args:
        images: [N, C, H, W], floating, [-1, 1]; values outside are clipped, NaN becomes 0.

    Returns:
        [N, H, W, C], uint8, contiguous.

    Raises:
        ValueError: `images` is not a floating array of rank 4.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"images must be a floating array [N, C, H, W], got {images.dtype} {images.shape}"
        )
    pixels = np.nan_to_num(images.astype(np.float32), nan=-1.0, posinf=1.0, neginf=-1.0)
    pixels = np.rint((np.clip(pixels, -1.0, 1.0) + 1.0) * 127.5)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1).astype(np.uint8))


def _check_options(
    size: int | None, channels: int | None, max_pixels: int, fit: str, on_error: str
) -> None:
    limits = (("size", size, _MAX_SIZE), ("channels", channels, 4), ("max_pixels", max_pixels, 0))
    for name, value, highest in limits:
        if value is None and name != "max_pixels":
            continue
        integral = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not integral or int(value) < 1 or (highest and int(value) > highest):  # type: ignore[arg-type]
            wanted = f"in 1..{highest}" if highest else "of at least 1"
            raise ValueError(f"{name} must be an integer {wanted}, got {value!r}")
    if fit not in ("stretch", "crop", "pad"):
        raise ValueError(f"fit must be 'stretch', 'crop' or 'pad', got {fit!r}")
    if on_error not in ("raise", "collect"):
        raise ValueError(f"on_error must be 'raise' or 'collect', got {on_error!r}")


def _as_items(source: Any) -> list[Any]:
    """List the single images of `source`; a batch becomes its rows."""
    if isinstance(source, (str, bytes, os.PathLike, Image.Image)):
        return [source]
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("source holds no images: got an empty list, wanted at least one")
        return list(source)
    array = _as_array(source, "source")
    if array.ndim == 4:
        if array.shape[0] == 0:
            raise ValueError(f"source holds no images: got an array of shape {array.shape}")
        return list(array)
    return [array]


def _as_array(value: Any, name: str) -> NDArray[Any]:
    if not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
        raise ValueError(
            f"{name} must be a path, bytes, PIL image or array, or a list of them, "
            f"got {type(value).__name__}"
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a device, ragged data
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be read as an array: {reason}") from error


def _load_one(
    item: Any, position: int, size: int | None, channels: int | None, max_pixels: int, fit: Fit
) -> FloatArray:
    """Read one image as [C, H, W] float32 in [-1, 1], of the channels and size asked for."""
    name = path_name(item) if isinstance(item, (str, os.PathLike)) else f"image {position}"
    if isinstance(item, (str, bytes, os.PathLike, Image.Image)):
        picture = decode_image(item, max_pixels=max_pixels, name=name)
        pixels = pil_to_float(picture, name=name, keep_alpha=channels == 4)
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        image *= 2.0
        image -= 1.0
    else:
        image = _array_to_float(_as_array(item, name), name)
    image = _match_channels(image, channels, name)
    if size is not None:
        image = _resize(image, int(size), fit)
    return image


def _array_to_float(array: NDArray[Any], name: str) -> FloatArray:
    """Convert one array, [H, W], integer [H, W, C] or floating [C, H, W], to [C, H, W]."""
    integer = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    if not integer and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} must be uint8, uint16 or floating, got {array.dtype}")
    layout = "[H, W] or [H, W, C]" if integer else "[H, W] or [C, H, W]"
    if array.ndim == 2:
        array = array[..., None] if integer else array[None]
    count = array.shape[-1 if integer else 0] if array.ndim == 3 else 0
    if array.ndim != 3 or not 1 <= count <= 4 or 0 in array.shape:
        raise ValueError(
            f"{name}: {array.dtype} pixels must be {layout} with 1..4 channels and not empty, "
            f"got shape {array.shape}"
        )
    if integer:
        scale = np.float32(np.iinfo(array.dtype).max / 2)
        scaled = array.astype(np.float32).transpose(2, 0, 1) / scale - np.float32(1.0)
        return np.ascontiguousarray(scaled)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite pixels; wanted numbers in [-1, 1]")
    low, high = float(array.min()), float(array.max())
    if low < -1.0 or high > 1.0:
        raise ValueError(
            f"{name}: floating pixels must lie in [-1, 1], got [{low:g}, {high:g}] "
            "(8-bit pixels are passed as uint8)"
        )
    return np.array(array, dtype=np.float32, order="C")


def _match_channels(image: FloatArray, channels: int | None, name: str) -> FloatArray:
    count = image.shape[0]
    if channels is None or channels == count:
        return image
    if count == 1 and channels == 3:
        return np.repeat(image, 3, axis=0)
    if count == 3 and channels == 1:
        grey = np.tensordot(_LUMA, image, axes=1)[None]
        return np.clip(grey, -1.0, 1.0).astype(np.float32)
    raise ValueError(f"{name} has {count} channels, which cannot become the {channels} asked for")


def _resize(image: FloatArray, size: int, fit: Fit) -> FloatArray:
    """Resize [C, H, W] to [C, size, size]; an image of that size is returned as it is."""
    height, width = image.shape[1:]
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    target_width = target_height = size
    if fit == "crop":
        left, top = (width - side) / 2, (height - side) / 2
        right, bottom = left + side, top + side
    elif fit == "pad":
        longest = max(height, width)
        target_width = max(1, round(width * size / longest))
        target_height = max(1, round(height * size / longest))
    result = np.full((image.shape[0], size, size), -1.0, dtype=np.float32)
    x, y = (size - target_width) // 2, (size - target_height) // 2
    for plane, source in zip(result, image, strict=True):
        resized = Image.fromarray(source).resize(
            (target_width, target_height),
            Image.Resampling.BICUBIC,
            box=(left, top, right, bottom),
        )
        plane[y : y + target_height, x : x + target_width] = np.asarray(resized)
    return np.clip(result, -1.0, 1.0, out=result)


def _stack(
    rows: list[FloatArray | None],
    reasons: list[str | None],
    size: int | None,
    channels: int | None,
) -> FloatArray:
    """Stack the images; refused ones become zeros."""
    good = [row for row in rows if row is not None]
    if not good:
        if size is None or channels is None:
            raise ImageDecodeError(f"none of {len(rows)} images can be read; first: {reasons[0]}")
        return np.zeros((len(rows), channels, size, size), dtype=np.float32)
    counts = {row.shape[0] for row in good}
    if counts == {1, 3}:
        good_rows = [None if row is None else _match_channels(row, 3, "image") for row in rows]
        return _stack(good_rows, reasons, size, 3)
    shapes = sorted({row.shape for row in good})
    if len(shapes) > 1:
        listed = ", ".join(str(shape) for shape in shapes[:4])
        raise ValueError(
            f"source: images differ in (channels, height, width): {listed}; "
            "give size= and channels= to make them alike"
        )
    images = np.zeros((len(rows), *shapes[0]), dtype=np.float32)
    for target, row in zip(images, rows, strict=True):
        if row is not None:
            target[...] = row
    return images
