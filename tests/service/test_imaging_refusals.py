"""What decode_image refuses, with which error, and that nothing else ever comes out of it."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.errors import (
    EmptyBodyError,
    ImageTooLargeError,
    InvalidImageError,
    PayloadTooLargeError,
    RequestError,
    UnsupportedMediaTypeError,
)
from service.imaging import DecodedImage, ImageLimits, decode_image
from tests.service.image_files import LIMITS, animation, encoded, exif, picture, pixels_of, rgb


def test_an_empty_body() -> None:
    with pytest.raises(EmptyBodyError):
        decode_image(b"", LIMITS)


def test_too_many_bytes_are_refused_whatever_they_are() -> None:
    with pytest.raises(PayloadTooLargeError, match="11 bytes; at most 10"):
        decode_image(b"\xff\xd8\xff" + bytes(8), ImageLimits(max_bytes=10, max_pixels=100))


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"just some text",
        b"\0" * 100,
        b'{"image": "..."}',
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x20ftypheic" + bytes(40),
        encoded(Image.new("RGB", (8, 8)), "PPM"),  # Pillow reads it, the service does not
        encoded(Image.new("RGB", (8, 8)), "ICO"),
    ],
)
def test_what_is_no_known_image_format_is_an_unsupported_media_type(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        decode_image(data, LIMITS)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("AVIF", encoded(Image.new("RGB", (8, 8)), "AVIF")),
        ("HEIC", b"\0\0\0\x18ftypheic" + bytes(40)),
        ("JPEG 2000", encoded(Image.new("RGB", (8, 8)), "JPEG2000")),
        ("PDF", encoded(Image.new("RGB", (8, 8)), "PDF")),
        ("video", b"\0\0\0\x1cftypmp42" + bytes(40)),
    ],
)
def test_other_kinds_of_pictures_are_called_by_name(kind: str, data: bytes) -> None:
    wanted = f"^A file of kind {kind} is not read here; send a JPEG, PNG, WebP, GIF, BMP or TIFF"
    with pytest.raises(UnsupportedMediaTypeError, match=wanted):
        decode_image(data, LIMITS)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_jpeg_says_so(keep: float, options: dict[str, object]) -> None:
    data = encoded(rgb(height=200, width=300), "JPEG", quality=98, **options)
    with pytest.raises(InvalidImageError, match="JPEG file is truncated") as caught:
        decode_image(data[: int(len(data) * keep)], LIMITS)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
def test_a_truncated_file_of_any_format_is_invalid(image_format: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    with pytest.raises(InvalidImageError):
        decode_image(data[: max(14, int(len(data) * keep))], LIMITS)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    ihdr = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr)


def huge_png() -> bytes:
    return png_header(50_000, 50_000) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def test_a_png_cut_after_an_oversized_header_is_too_large() -> None:
    with pytest.raises(ImageTooLargeError):
        decode_image(png_header(50_000, 50_000), LIMITS)


def huge_jpeg() -> bytes:
    data = bytearray(encoded(rgb(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def huge_gif() -> bytes:
    """A one-pixel screen with a first frame that covers 65,535 squared and wants it cleared."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    clear = b"!\xf9\x04" + bytes([2 << 2, 0, 0, 0]) + b"\0"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x01\x44\0"
    return screen + clear + frame + b";"


def huge_webp() -> bytes:
    canvas = (30_000 - 1).to_bytes(3, "little") * 2
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def huge_bmp() -> bytes:
    data = bytearray(encoded(rgb(), "BMP"))
    data[18:26] = struct.pack("<ii", 40_000, 40_000)
    return bytes(data)


def tiff(*tags: tuple[int, int], next_directory: int = 0) -> bytes:
    """A little-endian TIFF with one directory of LONG values and 8 spare bytes after it."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(8)


def huge_tiff() -> bytes:
    return tiff((256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (279, 8))


def tiff_with_a_huge_tile() -> bytes:
    return tiff(
        (256, 16), (257, 16), (258, 8), (259, 8), (262, 1),
        (322, 60_000), (323, 60_000), (324, 8), (325, 8),
    )  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [huge_png, huge_jpeg, huge_gif, huge_webp, huge_bmp, huge_tiff, tiff_with_a_huge_tile],
)
def test_a_small_file_that_announces_a_huge_image_is_too_large(make: Callable[[], bytes]) -> None:
    with pytest.raises(ImageTooLargeError, match="at most 1000000"):
        decode_image(make(), LIMITS)


def test_the_pixel_limit_is_exact() -> None:
    data = encoded(rgb(), "PNG")
    assert decode_image(data, ImageLimits(10_000, max_pixels=480)).pixels.shape == (20, 24, 3)
    with pytest.raises(ImageTooLargeError, match="24 x 20"):
        decode_image(data, ImageLimits(10_000, max_pixels=479))


@pytest.mark.parametrize("side", [10_000, 14_000])  # where Pillow's own guard warns, and refuses
def test_pillows_own_pixel_guard_neither_warns_nor_refuses(side: int) -> None:
    data = png_header(side, side, bits=1, colour=0) + png_chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError):
            decode_image(data, LIMITS)
        with pytest.raises(InvalidImageError):  # within the limit, so it is read: it has no data
            decode_image(data, ImageLimits(10_000, max_pixels=200_000_000))


def test_images_without_pixels_are_invalid() -> None:
    for data in (
        png_header(0, 5) + png_chunk(b"IEND", b""),
        tiff((256, 0), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (279, 8)),
    ):
        with pytest.raises(InvalidImageError):
            decode_image(data, LIMITS)


def test_running_out_of_memory_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", no_memory)
    with pytest.raises(ImageTooLargeError, match="not enough memory"):
        decode_image(encoded(rgb(), "JPEG"), LIMITS)


# --- robustness --------------------------------------------------------------------------------


def mutation_seeds() -> list[bytes]:
    image, deep = rgb(), Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    return [
        encoded(image, "JPEG", exif=exif(6)),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "PNG", exif=exif(3)),
        encoded(image.convert("P"), "PNG", transparency=1),
        encoded(deep, "PNG"),
        animation("PNG"),
        animation("GIF", disposal=2, duration=10, loop=0),
        encoded(image, "WEBP", exif=exif(8)),
        animation("WEBP"),
        encoded(image, "BMP"),
        encoded(image.convert("P"), "BMP"),
        animation("TIFF"),
        encoded(image, "TIFF", compression="tiff_lzw", exif=exif(5)),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(deep, "TIFF"),
        animation("MPO"),
    ]


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Change a few bytes, most of them near the start; at times drop, insert or cut."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        reach = min(len(changed), 300) if random.random() < 0.6 else len(changed)
        at = int(random.integers(reach))
        kind = random.random()
        if kind < 0.7:
            changed[at] = (0, 1, 127, 128, 255, int(random.integers(256)))[random.integers(6)]
        elif kind < 0.8:
            del changed[at : at + int(random.integers(1, 9))]
        elif kind < 0.9:
            changed[at:at] = random.bytes(int(random.integers(1, 9)))
        else:
            del changed[max(at, 2) :]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on broken metadata
def test_broken_files_give_a_valid_image_or_one_of_our_errors() -> None:
    random = np.random.default_rng(7)
    seeds = mutation_seeds()
    decoded = refused = 0
    for case in range(600):
        data = mutate(seeds[case % len(seeds)], random)
        try:
            image = decode_image(data, LIMITS)
        except RequestError:
            refused += 1
            continue
        decoded += 1
        assert_is_valid(image)
    assert decoded > 50
    assert refused > 50


def assert_is_valid(image: DecodedImage) -> None:
    assert image.pixels.dtype == np.uint8
    assert image.pixels.ndim == 3
    assert image.pixels.shape[2] == 3
    assert 0 < image.pixels.size <= 3 * LIMITS.max_pixels
    assert image.pixels.flags.c_contiguous
    assert image.frames >= 1


def test_threads_do_not_mix_their_images() -> None:
    images = [encoded(rgb(seed=seed), "PNG", exif=exif(1 + seed % 8)) for seed in range(40)]
    alone = [pixels_of(data) for data in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels_of, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
