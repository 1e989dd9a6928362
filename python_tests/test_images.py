# SPDX-License-Identifier: Apache-2.0
"""What becomes of each kind of image: golden values, sizes, channels, arrays, batches."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cae_fast.errors import ImageDecodeError
from cae_fast.images import iter_batches, load_images, load_original, to_uint8

RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
RAMP16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def reopened(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scaled(values: Any, highest: float = 255.0) -> np.ndarray:
    return (np.asarray(values, dtype=np.float64) / highest * 2 - 1).astype(np.float32)


# ---- golden conversions of files


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_grey_8_bit_is_exact(kind: str) -> None:
    data = reopened(Image.fromarray(RAMP8), kind)
    images = load_images(data, channels=1)
    assert images.dtype == np.float32
    assert images.shape == (1, 1, 16, 16)
    np.testing.assert_allclose(images[0, 0], scaled(RAMP8), rtol=0, atol=2e-7)
    assert images.min() == -1.0
    assert images.max() == 1.0


def test_rgb_channel_order() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1] = (255, 51, 0)
    images = load_images(reopened(Image.fromarray(pixels)))
    np.testing.assert_allclose(images[0, :, 0, 1], [1.0, -0.6, -1.0], atol=2e-7)
    np.testing.assert_array_equal(images[0, :, 1, 1], [-1, -1, -1])


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I")])
def test_grey_16_bit_keeps_all_levels(kind: str, mode: str) -> None:
    data = reopened(Image.fromarray(RAMP16), kind)
    assert Image.open(io.BytesIO(data)).mode == mode
    images = load_images(data)
    assert len(np.unique(images)) == 65536
    np.testing.assert_allclose(images[0, 0], scaled(RAMP16, 65535), rtol=0, atol=2e-7)


def test_grey_16_bit_levels_survive_resizing_and_colour() -> None:
    narrow = np.repeat(np.arange(256, dtype=np.uint16) + 30000, 2).reshape(16, 32)
    images = load_images(reopened(Image.fromarray(narrow)), size=24, channels=3)
    assert images.shape == (1, 3, 24, 24)
    assert len(np.unique(images)) > 256
    assert np.abs((images + 1) * 32767.5 - 30128).max() < 180


def test_grey_16_bit_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0, 65535))
    np.testing.assert_array_equal(load_images(reopened(image, "TIFF"))[0, 0], [[-1, 1]])


def test_tiff_of_12_bits_has_its_own_highest_value() -> None:
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    tags += [(279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0"  # pixels 0xfff and 0x800
    data += struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_allclose(
        load_images(data)[0, 0], [[1.0, 0x800 / 0xFFF * 2 - 1]], rtol=0, atol=2e-7
    )


def test_integer_and_float_grey_out_of_range_are_refused() -> None:
    inside = Image.fromarray(np.array([[0, 65535]], np.int32))
    np.testing.assert_array_equal(load_images(reopened(inside, "TIFF"))[0, 0], [[-1, 1]])
    for values in ([[0, 65536]], [[-1, 5]]):
        outside = Image.fromarray(np.array(values, np.int32))
        with pytest.raises(ImageDecodeError, match=r"wanted \[0, 65535\]"):
            load_images(reopened(outside, "TIFF"))
    good = Image.fromarray(np.array([[0.0, 0.25, 1.0]], np.float32))
    np.testing.assert_array_equal(load_images(reopened(good, "TIFF"))[0, 0], [[-1, -0.5, 1]])
    for value in (1.5, -0.1, np.nan, np.inf):
        bad = Image.fromarray(np.array([[0.0, value]], np.float32))
        with pytest.raises(ImageDecodeError, match=r"float grey .* wanted \[0, 1\]"):
            load_images(reopened(bad, "TIFF"))


def test_one_bit() -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(load_images(reopened(image))[0], [[[-1, 1]]])


def test_palette_becomes_rgb() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 51, 0])
    image.putpixel((1, 0), 1)
    images = load_images(reopened(image))
    assert images.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(images[0, :, 0, 1], [1, -0.6, -1], atol=2e-7)
    clear = load_images(reopened(image, transparency=1))
    np.testing.assert_array_equal(clear[0, :, 0, 1], [-1, -1, -1])
    kept = load_images(reopened(image, transparency=1), channels=4)
    np.testing.assert_allclose(kept[0, :, 0, 1], [1, -0.6, -1, -1], atol=2e-7)


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    np.testing.assert_array_equal(load_images(reopened(image, "TIFF"))[0, :, 0, 0], [1, -1, -1])
    white = load_images(reopened(Image.new("CMYK", (8, 8)), "JPEG"))
    assert white.shape == (1, 3, 8, 8)
    assert white.min() > 0.95


def test_alpha_is_composited_over_black() -> None:
    colour = Image.new("RGBA", (1, 1), (255, 102, 0, 51))
    expected = scaled([51.0, 20.4, 0])
    np.testing.assert_allclose(load_images(reopened(colour))[0, :, 0, 0], expected, atol=3e-7)
    kept = load_images(reopened(colour), channels=4)
    np.testing.assert_allclose(kept[0, :, 0, 0], scaled([255, 102, 0, 51]), atol=2e-7)
    grey = Image.new("LA", (1, 1), (204, 51))
    images = load_images(reopened(grey))
    assert images.shape == (1, 1, 1, 1)
    np.testing.assert_allclose(images[0, :, 0, 0], scaled([40.8]), atol=3e-7)


def test_one_transparent_colour_becomes_black() -> None:
    colour = Image.fromarray(np.array([[[9, 8, 7], [200, 100, 0]]], np.uint8))
    images = load_images(reopened(colour, transparency=(200, 100, 0)))
    np.testing.assert_allclose(images[0, :, 0, 0], scaled([9, 8, 7]), atol=2e-7)
    np.testing.assert_array_equal(images[0, :, 0, 1], [-1, -1, -1])
    for dtype, value in ((np.uint8, 200), (np.uint16, 40000)):
        grey = Image.fromarray(np.array([[value, 7]], dtype))
        images = load_images(reopened(grey, transparency=value))
        highest = float(np.iinfo(dtype).max)
        np.testing.assert_allclose(images[0, 0], [[-1, 7 / highest * 2 - 1]], atol=2e-7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # Where the stored top left pixel belongs: the EXIF standard's rows and columns.
    shown = np.full((16, 24), 40, np.uint8)
    shown[:8, :8] = 220  # the corner that must end up at the top left
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: shown.T[::-1],
        7: shown.T[::-1, ::-1],
        8: shown.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = reopened(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    images = load_images(data, channels=1)
    assert images.shape == (1, 1, 16, 24)
    np.testing.assert_allclose(images[0, 0], scaled(shown), atol=0.1)


# ---- size, fit, channels


def test_resize_keeps_constants_and_means() -> None:
    constant = np.full((37, 53), 51, np.uint8)
    for fit in ("stretch", "crop"):
        images = load_images(constant, size=16, fit=fit)  # type: ignore[call-overload]
        np.testing.assert_allclose(images, -0.6, atol=1e-6)
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = load_images(checks, size=16)[0, 0, 4:-4, 4:-4]
    np.testing.assert_allclose(shrunk, 0.0, atol=0.02)  # antialiased: no moire


def test_resize_to_own_size_changes_nothing() -> None:
    np.testing.assert_array_equal(load_images(RAMP8, size=16), load_images(RAMP8))


def test_resize_stays_in_range() -> None:
    edge = np.zeros((8, 8), np.uint8)
    edge[:, 4:] = 255
    images = load_images(edge, size=64)
    assert images.min() == -1.0
    assert images.max() == 1.0


def test_fits() -> None:
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255  # a white square between black ones
    np.testing.assert_allclose(load_images(wide, size=20, fit="crop"), 1.0, atol=1e-6)
    stretched = load_images(wide, size=60)[0, 0]
    np.testing.assert_allclose(stretched[:, 24:36], 1.0, atol=1e-6)
    np.testing.assert_allclose(stretched[:, :16], -1.0, atol=1e-6)
    padded = load_images(np.full((20, 60), 255, np.uint8), size=30, fit="pad")[0, 0]
    np.testing.assert_array_equal(padded[:10], -1.0)
    np.testing.assert_array_equal(padded[20:], -1.0)
    np.testing.assert_allclose(padded[10:20], 1.0, atol=1e-6)


def test_thin_images_resize() -> None:
    for fit in ("stretch", "crop", "pad"):
        line = np.full((1, 500), 255, np.uint8)
        assert load_images(line, size=16, fit=fit).shape == (1, 1, 16, 16)  # type: ignore[call-overload]


def test_channels() -> None:
    colour = np.zeros((1, 3, 3), np.uint8)
    colour[0] = np.eye(3, dtype=np.uint8) * 255
    grey = load_images(colour, channels=1)
    np.testing.assert_allclose(grey[0, 0, 0], scaled([0.299, 0.587, 0.114], 1), atol=1e-6)
    white = load_images(np.full((2, 2, 3), 255, np.uint8), channels=1)
    assert white.max() <= 1.0
    triple = load_images(RAMP8, channels=3)
    assert triple.shape == (1, 3, 16, 16)
    for channel in triple[0]:
        np.testing.assert_array_equal(channel, load_images(RAMP8)[0, 0])
    four = np.zeros((5, 5, 4), np.uint8)
    assert load_images(four, channels=4).shape == (1, 4, 5, 5)
    assert load_images(four[..., :2], channels=2).shape == (1, 2, 5, 5)
    for wrong in (1, 2, 3):
        with pytest.raises(ValueError, match=f"4 channels, .* the {wrong} asked for"):
            load_images(four, channels=wrong)
    with pytest.raises(ValueError, match=r"3 channels, .* the 4 asked for"):
        load_images(Image.new("RGB", (4, 4)), channels=4)


def test_grey_among_colour_becomes_colour() -> None:
    images = load_images([RAMP8, np.zeros((16, 16, 3), np.uint8)])
    assert images.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(images[0, 0], images[0, 2])


def test_sizes_that_differ_are_listed() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 4\), \(1, 4, 5\); give size="):
        load_images([np.zeros((4, 5), np.uint8), np.zeros((4, 4), np.uint8)])


# ---- lists, refused images, batches


@pytest.fixture
def mixed(tmp_path: Path) -> list[Any]:
    """Eight images of which the third is cut and the sixth NaN."""
    sources: list[Any] = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        path.write_bytes(reopened(Image.fromarray(RAMP8[::-1] if number % 2 else RAMP8)))
        sources.append(path)
    sources[2].write_bytes(sources[2].read_bytes()[:50])
    sources[5] = np.full((1, 16, 16), np.nan, np.float32)
    return sources


def test_one_bad_image_stops_by_default(mixed: list[Any]) -> None:
    with pytest.raises(ImageDecodeError, match=r"2\.png"):
        load_images(mixed)


def test_collect_leaves_the_others_untouched(mixed: list[Any]) -> None:
    images, reasons = load_images(mixed, on_error="collect")
    assert [position for position, reason in enumerate(reasons) if reason] == [2, 5]
    assert "2.png" in str(reasons[2])
    assert "NaN" in str(reasons[5])
    np.testing.assert_array_equal(images[[2, 5]], 0.0)
    good = [0, 1, 3, 4, 6, 7]
    np.testing.assert_array_equal(images[good], load_images([mixed[i] for i in good]))


def test_collect_with_nothing_good() -> None:
    images, reasons = load_images([b"", b"x"], size=8, channels=3, on_error="collect")
    assert images.shape == (2, 3, 8, 8)
    assert not images.any()
    assert all(reasons)
    with pytest.raises(ImageDecodeError, match=r"none of 2 images can be read; first: .* is empty"):
        load_images([b"", b"x"], on_error="collect")


def test_batches_equal_the_whole(mixed: list[Any]) -> None:
    whole, reasons = load_images(mixed, size=10, channels=3, on_error="collect")
    batches = list(iter_batches(mixed, 3, size=10, channels=3, on_error="collect"))
    assert [len(images) for images, _ in batches] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), whole)
    assert [reason for _, part in batches for reason in part] == reasons
    stream = iter_batches(mixed, 2, size=10, channels=1)
    assert next(stream)[1] == [None, None]  # nothing is read ahead
    with pytest.raises(ImageDecodeError, match=r"2\.png"):
        next(stream)
    for size in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="batch_size"):
            next(iter_batches(mixed, size, size=10, channels=1))  # type: ignore[arg-type]


def test_pil_and_path_and_bytes_agree(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP8)
    path = tmp_path / "ramp.png"
    image.save(path)
    expected = load_images(RAMP8)
    for source in (image, path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(load_images(source), expected)


# ---- back to 8 bits


def test_to_uint8_clips_and_survives_nan() -> None:
    values = np.array([-9, -1, 0, 1, 9, np.nan, np.inf, -np.inf], np.float32).reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(to_uint8(values).ravel(), [0, 0, 128, 255, 255, 0, 255, 0])
    for bad in (np.zeros((1, 3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.float32)):
        with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
            to_uint8(bad)


def test_load_original_keeps_the_size() -> None:
    image = Image.new("P", (7, 5))
    image.putpalette([10, 20, 30])
    pixels = load_original(reopened(image))
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 20, 30)).all()
    deep = load_original(reopened(Image.fromarray(RAMP16)))
    np.testing.assert_allclose(deep[..., 0], RAMP16 / 257, atol=0.51)
    with pytest.raises(ValueError, match="source must be one image, got 2"):
        load_original([image, image])  # type: ignore[arg-type]


# ---- real images


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "channels", "side"),
    [("chest_xray", 1, 128), ("brain_tumor_mri", 1, 160), ("blood_cells", 3, 112)],
)
def test_real_images(shared_dir: Path, folder: str, channels: int, side: int) -> None:
    files = sorted((shared_dir / "data" / folder / "test").rglob("*.png"))[::20]
    images = load_images(files)
    assert images.shape == (len(files), channels, side, side)
    assert -1.0 <= images.min() < images.max() <= 1.0
    assert images.std() > 0.1
    with Image.open(files[0]) as first:
        expected = np.asarray(first).reshape(side, side, channels)
    np.testing.assert_array_equal(to_uint8(images[:1])[0], expected)
    small = load_images(files, size=64, channels=3)
    assert small.shape == (len(files), 3, 64, 64)
    np.testing.assert_allclose(small.mean(), load_images(files, channels=3).mean(), atol=0.01)
