# SPDX-License-Identifier: Apache-2.0
"""Files that are no good images: cut, damaged, huge, foreign. Each is refused in one clear line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cae_fast.errors import ImageDecodeError
from cae_fast.images import decode_image, load_images

SEED = 20
# Scans whose last bytes Pillow does not need: the pixels of such a prefix must be the right ones.
WHOLE_WITHOUT_TAIL = {"png", "png16", "jpeg", "gif", "bmp"}


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(height: int = 12, width: int = 9) -> Image.Image:
    pixels = np.random.default_rng(SEED).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def small_files() -> dict[str, bytes]:
    image = picture()
    deep = np.random.default_rng(SEED).integers(0, 65536, (12, 9), dtype=np.uint16)
    return {
        "png": encode(image, "PNG"),
        "png16": encode(Image.fromarray(deep), "PNG"),
        "jpeg": encode(image, "JPEG"),
        "jpeg_progressive": encode(image, "JPEG", progressive=True),
        "webp": encode(image, "WEBP"),
        "webp_lossless": encode(image, "WEBP", lossless=True),
        "gif": encode(image, "GIF"),
        "bmp": encode(image, "BMP"),
        "tiff": encode(image, "TIFF"),
        "ppm": encode(image, "PPM"),
    }


SMALL_FILES = small_files()


@pytest.fixture(autouse=True)
def _pillow_warnings() -> Iterator[None]:
    """Let Pillow warn about damaged TIFF headers, as it does for users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def refusal(data: object, **options: int) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        load_images(data, **options)  # type: ignore[call-overload]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_every_prefix_is_refused_or_whole(kind: str) -> None:
    data = SMALL_FILES[kind]
    whole = load_images(data)
    accepted = []
    for length in range(len(data)):
        try:
            images = load_images(data[:length])
        except ImageDecodeError:
            continue
        accepted.append(length)
        np.testing.assert_array_equal(images, whole)
    if kind not in WHOLE_WITHOUT_TAIL:
        assert accepted == []
    # checksums and end marks are all that may be missing
    assert all(length >= len(data) - 20 for length in accepted)


@settings(max_examples=200)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8X"])
    | st.sampled_from([b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P6 ", b"P4 ", b"Pf "]),
)
def test_garbage_is_refused(body: bytes, head: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, reasons = load_images(
            head + body, size=8, channels=3, max_pixels=10_000, on_error="collect"
        )
    assert "\n" not in str(reasons[0])
    assert images.shape == (1, 3, 8, 8)
    if head[:4] in (b"\x89PNG", b"RIFF"):  # a few bytes after "P4 " can be a real picture
        assert reasons[0] is not None


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(SMALL_FILES)),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)
def test_a_changed_byte_never_escapes_as_another_error(kind: str, where: float, by: int) -> None:
    data = bytearray(SMALL_FILES[kind])
    data[int(where * len(data))] ^= by
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, reasons = load_images(
            bytes(data), size=8, channels=1, max_pixels=100_000, on_error="collect"
        )
    assert "\n" not in str(reasons[0])
    assert np.abs(images).max() <= 1.0  # false for NaN too


def test_refusals_name_file_and_format(tmp_path: Path) -> None:
    cut = tmp_path / "scan.png"
    cut.write_bytes(SMALL_FILES["png"][:200])
    text = refusal(cut)
    assert str(cut) in text
    assert "PNG" in text
    assert "truncated" in text
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert "is empty (0 bytes)" in refusal(empty)


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def webp_canvas(width: int, height: int) -> bytes:
    """A whole WebP animation of two 8x8 frames whose header claims a large canvas."""
    frames = [Image.new("RGBA", (8, 8), (number, 2, 3, 40)) for number in (1, 200)]
    data = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def tiff_tile_header(tile: int) -> bytes:
    """An 8x8 grey TIFF that claims tiles of tile x tile pixels."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8), (325, 64)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


BOMBS = {
    "png_of_zeros": lambda: png_header(9000, 9000, zlib.compress(bytes(9001 * 9000), 9)),
    "png_without_data": lambda: png_header(20000, 20000),
    "webp_canvas": lambda: webp_canvas(12000, 12000),
    "tiff_tile": lambda: tiff_tile_header(20000),
    "bmp": lambda: (
        b"BM" + struct.pack("<IIIIiiHHI", 54, 0, 54, 40, 20000, 20000, 1, 24, 0) + bytes(20)
    ),
    "gif": lambda: b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0) + b",",
    "ppm": lambda: b"P6 20000 20000 255\n",
}

MEASURE = """
import sys
from cae_fast.errors import ImageDecodeError
from cae_fast.images import load_images
def peak():
    # the address space, not the pages in use: an allocation counts though nobody writes to it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmPeak"))
load_images(sys.argv[1])  # a good image first, so that decoders are loaded
for path in sys.argv[2:]:
    before = peak()
    try:
        load_images(path)
    except ImageDecodeError as error:
        print(peak() - before, error)
    else:
        print("accepted", path)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures through /proc")
def test_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    good.write_bytes(SMALL_FILES["png"])
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    assert (tmp_path / "png_of_zeros").stat().st_size < 300_000
    bombs = [str(tmp_path / name) for name in BOMBS]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(good), *bombs],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    for line, path in zip(lines, bombs, strict=True):
        growth_kib, text = line.split(" ", 1)
        assert int(growth_kib) < 50 * 1024, line
        assert path in text
        if not path.endswith("gif"):  # a GIF's screen size alone allocates nothing
            assert "more pixels than the 16,000,000 allowed" in text


def test_pixel_cap_is_the_callers(tmp_path: Path) -> None:
    data = encode(Image.new("L", (40, 30)), "PNG")
    assert load_images(data, max_pixels=1200).shape == (1, 1, 30, 40)
    assert "40x30 pixels, more pixels than the 1,199 allowed" in refusal(data, max_pixels=1199)
    assert "40x30" in refusal(Image.new("L", (40, 30)), max_pixels=1199)


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_sizes_are_read_as_pillow_reads_them(lossless: bool) -> None:
    data = encode(picture(70, 51), "WEBP", lossless=lossless)
    with pytest.raises(ImageDecodeError, match="51x70 pixels"):
        load_images(data, max_pixels=51 * 70 - 1)
    assert load_images(data, max_pixels=51 * 70).shape == (1, 3, 70, 51)
    alpha = encode(picture(70, 51).convert("RGBA"), "WEBP", lossless=lossless, exif=b"Exif\0\0")
    with pytest.raises(ImageDecodeError, match="51x70 pixels"):
        load_images(alpha, max_pixels=51 * 70 - 1)


FOREIGN = {
    "fits": b"".join(
        card.ljust(80)
        for card in (b"SIMPLE  =                    T", b"BITPIX  =                    8")
    ).ljust(2880),
    "gd": b"\xff\xfe" + struct.pack(">HHB", 4, 4, 1) + bytes(64),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n",
    "pdf": encode(picture(), "PDF"),
    "jpeg2000": encode(picture(32, 32), "JPEG2000"),
    "icns": encode(picture(16, 16), "ICNS"),
    "ico": encode(picture(16, 16), "ICO"),
    "tga": encode(picture(), "TGA"),
    "pcx": encode(picture(), "PCX"),
    "dicom": bytes(128) + b"DICM" + bytes(64),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zip": b"PK\x03\x04" + bytes(64),
}
NAMED = {
    "fits": "FITS",
    "eps": "PostScript",
    "pdf": "PDF",
    "jpeg2000": "JPEG 2000",
    "icns": "ICNS",
    "dicom": "DICOM",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused(kind: str) -> None:
    text = refusal(FOREIGN[kind])
    assert "wanted a PNG, JPEG, WebP, BMP, TIFF, PPM or still GIF image" in text
    assert NAMED.get(kind, "") in text


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    other = Image.fromarray(255 - np.asarray(picture()))
    data = encode(picture(), kind, save_all=True, append_images=[other])
    assert "several frames or pages" in refusal(data)
    opened = Image.open(io.BytesIO(data))
    assert "several frames or pages" in refusal(opened)


def test_first_picture_of_a_camera_file_is_read() -> None:
    other = Image.fromarray(255 - np.asarray(picture()))
    data = encode(picture(), "MPO", save_all=True, append_images=[other])
    alone = encode(picture(), "JPEG")
    np.testing.assert_array_equal(load_images(data), load_images(alone))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.png")
    assert "is a folder" in refusal(tmp_path)
    assert "is not a path" in refusal("nul\0byte.png")
    assert "\\n" in refusal(str(tmp_path / "two\nlines.png"))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "symbolic links" in refusal(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(tmp_path / "pipe.png")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # the superuser, as whom tests may run, can open anything
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.png").write_bytes(SMALL_FILES["png"])
    monkeypatch.setattr("builtins.open", refuse)
    text = refusal(tmp_path / "secret.png")
    assert "secret.png: cannot be read: Permission denied" in text


def test_running_out_of_memory_is_not_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    image = Image.open(io.BytesIO(SMALL_FILES["png"]))
    monkeypatch.setattr(image, "load", exhausted)
    with pytest.raises(MemoryError):
        decode_image(image)
