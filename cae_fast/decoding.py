# SPDX-License-Identifier: Apache-2.0
"""Open one image file defensively, and turn its pixels into floats.

Pillow is the decoder. Around it stand an allow-list of formats, a pixel cap that is read from the
header before any pixel memory is asked for, and one kind of error for everything that is wrong
with a file. The conversions are listed in `cae_fast.images`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageDecodeError

DEFAULT_MAX_PIXELS = 16_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".gif"}
)

_WANTED = "wanted a PNG, JPEG, WebP, BMP, TIFF, PPM or still GIF image"
_HEAD_BYTES = 256
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 258, 322, 323
# (offset, magic bytes, what to call it), so that the error can name what people do try
_KNOWN = (
    (0, b"\x89PNG", "a PNG image with a damaged header"),
    (0, b"\xff\xd8\xff", "a JPEG image with a damaged header"),
    (8, b"WEBP", "a WebP image with a damaged header"),
    (0, b"GIF8", "a GIF image with a damaged header"),
    (0, b"II*\x00", "a TIFF image with a damaged header"),
    (0, b"MM\x00*", "a TIFF image with a damaged header"),
    (0, b"BM", "a BMP image with a damaged header"),
    (128, b"DICM", "a DICOM file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"icns", "an ICNS icon"),
    (0, b"\x00\x00\x01\x00", "an ICO icon"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML file"),
)


def decode_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Decode one image completely and turn it upright.

    Args:
        source: A path, the bytes of an image file, or a PIL image (used as it is, whatever file
            format it came from).
        max_pixels: Largest width x height, checked before decoding.
        name: What error texts call the image; None means the path.

    Returns:
        A PIL image of the file's own mode, loaded, its EXIF orientation applied, one frame.

    Raises:
        ImageDecodeError: Not a readable file, not an image of an accepted format, larger than
            `max_pixels`, animated or of several pages, truncated or damaged.
    """
    if isinstance(source, Image.Image):
        return _load(source, max_pixels, name or "image")
    if isinstance(source, bytes):
        return _decode_stream(io.BytesIO(source), len(source), max_pixels, name or "image")
    name = name or path_name(source)
    try:
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            raise ImageDecodeError(f"{name}: is a folder; {_WANTED}")
        if not stat.S_ISREG(status.st_mode):
            raise ImageDecodeError(f"{name}: is not a regular file; {_WANTED}")
        with open(source, "rb") as stream:
            return _decode_stream(stream, status.st_size, max_pixels, name)
    except OSError as error:
        raise ImageDecodeError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, ImageDecodeError):
            raise
        raise ImageDecodeError(f"{name}: is not a path: {error}") from error


def path_name(path: str | os.PathLike[str]) -> str:
    """Name a path in an error text, on one line whatever characters it has."""
    text = str(os.fspath(path))
    return text if text.isprintable() else repr(text)


def pil_to_float(image: Image.Image, *, name: str, keep_alpha: bool = False) -> NDArray[np.float32]:
    """Convert a loaded PIL image to floats, as the table in `cae_fast.images` says.

    Args:
        image: A loaded image, as `decode_image` returns it.
        name: What error texts call the image.
        keep_alpha: Return RGBA for an image that has transparency, instead of compositing it
            over black; one without transparency still has 1 or 3 channels.

    Returns:
        [H, W, C], float32 in [0, 1], C of 1, 3 or (keep_alpha) 4.

    Raises:
        ImageDecodeError: The image's mode is not in the table, or its values are out of range.
    """
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _deep_grey_to_float(image, name)
    has_alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    with _decode_errors(name, f"an image of mode {mode}"):
        if has_alpha and (keep_alpha or mode not in ("LA", "La", "1", "L")):
            image = image.convert("RGBA")
        elif has_alpha:
            image = image.convert("LA")
        elif mode == "1":
            image = image.convert("L")
        elif mode not in ("L", "RGB"):
            image = image.convert("RGB")
    pixels = np.asarray(image).astype(np.float32)
    pixels /= np.float32(255.0)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if has_alpha and not keep_alpha:
        pixels = pixels[..., :-1] * pixels[..., -1:]  # over black
    return pixels


def _deep_grey_to_float(image: Image.Image, name: str) -> NDArray[np.float32]:
    values = np.asarray(image)
    if values.dtype.kind == "f":
        highest = 1.0
        kind = "float grey image"
    else:
        bits = _tiff_tag(image, _TIFF_BITS_PER_SAMPLE)
        highest = float(2**bits - 1) if 8 < bits < 16 else 65535.0
        kind = "integer grey image of more than 8 bits"
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= highest):  # also true for NaN
        raise ImageDecodeError(
            f"{name}: {kind} with values in [{low:g}, {high:g}]; wanted [0, {highest:g}]"
        )
    pixels = values.astype(np.float32) / np.float32(highest)
    key = image.info.get("transparency")
    if isinstance(key, int):
        pixels[values == key] = 0.0
    return pixels[..., None]


def _decode_stream(stream: BinaryIO, length: int, max_pixels: int, name: str) -> Image.Image:
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise ImageDecodeError(f"{name}: is empty (0 bytes); {_WANTED}")
    webp_size = _webp_canvas(head)
    if webp_size is not None:  # Pillow's WebP reader reserves the canvas when it opens the file
        _check_pixels(webp_size, max_pixels, name)
    try:
        with _decode_errors(name, f"{length} bytes"):
            image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own cap came first
        cap = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageDecodeError(f"{name}: more pixels than the {cap:,} allowed: {error}") from error
    except ImageDecodeError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ImageDecodeError(
                f"{name}: {_describe(head)} ({length} bytes); {_WANTED}"
            ) from error.__cause__
        raise
    return _load(image, max_pixels, name)


def _load(image: Image.Image, max_pixels: int, name: str) -> Image.Image:
    """Check an opened image's header, decode it and turn it upright."""
    kind = image.format or "image"
    _check_pixels(image.size, max_pixels, name)
    tile = (_tiff_tag(image, _TIFF_TILE_WIDTH), _tiff_tag(image, _TIFF_TILE_LENGTH))
    _check_pixels(tile, max_pixels, name, empty_ok=True)
    with _decode_errors(name, f"a {kind} file of {image.width}x{image.height} pixels"):
        several = kind != "MPO" and bool(getattr(image, "is_animated", False))
    if several:
        raise ImageDecodeError(
            f"{name}: a {kind} file of several frames or pages; wanted a single picture"
        )
    with _decode_errors(name, f"a {kind} file of {image.width}x{image.height} pixels"):
        image.load()
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image


def _check_pixels(
    size: tuple[int, int], max_pixels: int, name: str, *, empty_ok: bool = False
) -> None:
    width, height = size
    if not empty_ok and (width < 1 or height < 1):
        raise ImageDecodeError(f"{name}: is {width}x{height} pixels; wanted at least 1x1")
    if width * height > max_pixels:
        raise ImageDecodeError(
            f"{name}: {width}x{height} pixels, more pixels than the {max_pixels:,} allowed; "
            "scale it down or raise max_pixels"
        )


@contextmanager
def _decode_errors(name: str, seen: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one ImageDecodeError."""
    try:
        yield
    except (MemoryError, ImageDecodeError, Image.DecompressionBombError):
        raise
    # Pillow's readers raise nearly any exception on garbage: OSError, SyntaxError, struct.error,
    # zlib.error, KeyError, OverflowError, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageDecodeError(
            f"{name}: cannot be decoded ({seen}): {reason}; {_WANTED}"
        ) from error


def _tiff_tag(image: Image.Image, tag: int) -> int:
    """First value of an integer TIFF tag, 0 where there is none."""
    tags: Any = getattr(image, "tag_v2", None)
    value = tags.get(tag, 0) if tags is not None else 0
    if isinstance(value, tuple):
        value = value[0] if value else 0
    return value if isinstance(value, int) else 0


def _webp_canvas(head: bytes) -> tuple[int, int] | None:
    """Width and height a WebP header announces, None for other files or an unknown chunk."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    chunk, body = head[12:16], head[20:30]
    if chunk == b"VP8X":
        return (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
    if chunk == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return (1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    if chunk == b"VP8 ":
        return (
            int.from_bytes(body[6:8], "little") & 0x3FFF,
            int.from_bytes(body[8:10], "little") & 0x3FFF,
        )
    return None


def _describe(head: bytes) -> str:
    for offset, magic, words in _KNOWN:
        if head[offset : offset + len(magic)] == magic:
            return f"looks like {words}"
    shown = head[:8].hex(" ")
    return f"is not an image of a known format (starts with {shown})"
