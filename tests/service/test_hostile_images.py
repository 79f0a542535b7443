"""Files made to cost much are refused before a decoder is called; benchmarks/bombs.py measures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageFile, TiffImagePlugin

from service.errors import ImageTooLargeError, InvalidImageError
from service.image_directories import check_directory
from service.image_headers import read_header
from service.imaging import ImageLimits, decode_image
from tests.service import bombs
from tests.service.image_files import animation, encoded, exif, rgb

LIMITS = ImageLimits(max_bytes=64_000_000, max_pixels=64_000_000)


def name_of(make: Callable[[], bytes]) -> str:
    return make.__name__


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a decoder was called")  # no Exception, which would pass for a broken file's

    monkeypatch.setattr(cv2, "imdecode", refuse)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", refuse)


@pytest.mark.parametrize("make", bombs.PIXELS, ids=name_of)
def test_picture_of_too_many_pixels_is_not_decoded(
    make: Callable[[], bytes], no_decoder: None
) -> None:
    with pytest.raises(ImageTooLargeError):
        decode_image(make(), LIMITS)


@pytest.mark.parametrize("make", bombs.REFUSED, ids=name_of)
def test_picture_that_asks_for_too_much_else_is_not_decoded(
    make: Callable[[], bytes], no_decoder: None
) -> None:
    with pytest.raises(InvalidImageError):
        decode_image(make(), LIMITS)


def test_scans_behind_a_whole_picture_are_refused_by_libjpeg() -> None:
    """No marker is counted there: libjpeg stops at the second, however many there are."""
    assert decode_image(bombs.sequential_jpeg(1), LIMITS).pixels.shape == (1024, 1024, 3)
    for scans in (2, 500):
        read_header(bombs.sequential_jpeg(scans), "JPEG")
        with pytest.raises(InvalidImageError):
            decode_image(bombs.sequential_jpeg(scans), LIMITS)


@pytest.mark.parametrize("make", bombs.READ, ids=name_of)
def test_exif_that_asks_for_too_much_is_left_unread(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the directory was loaded")

    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", refuse)
    assert decode_image(make(), LIMITS).pixels.size


def test_a_tiff_of_jpegs_counts_their_scans_and_nothing_else() -> None:
    """Beside them, layers of Photoshop's may hold any bytes."""
    data = encoded(rgb(64, 64), "TIFF", compression="jpeg")
    assert decode_image(data + b"\xff\xda" * 1_000_000, LIMITS).pixels.shape == (64, 64, 3)


def test_a_run_length_encoded_photo_of_single_runs_is_read() -> None:
    """Twice its pixels in bytes, as a scan of a photo has."""
    data = bytearray(encoded(Image.fromarray(np.zeros((480, 640), np.uint8)), "BMP"))
    data[30] = 1
    start = struct.unpack_from("<I", data, 10)[0]
    row = b"\x00\x80" + b"\x07" * 128  # literally
    runs = (row * 5 + b"\0\0") * 480 + b"\0\1"
    assert decode_image(bytes(data[:start]) + runs, LIMITS).pixels.shape == (480, 640, 3)


def test_a_profile_and_some_texts_of_a_png_pass() -> None:
    profile = b"sRGB\0\0" + zlib.compress(bytes(500_000))
    text = [b"%d\0\0" % number + zlib.compress(b"a title, a place") for number in range(200)]
    chunks = [bombs.png_chunk(b"iCCP", profile), *(bombs.png_chunk(b"zTXt", t) for t in text)]
    assert decode_image(bombs.png(*chunks), LIMITS).pixels.shape == (16, 16, 3)


@pytest.mark.parametrize(("side", "tile"), [(16, 512), (600, 1024), (1500, 1500)])
def test_a_tile_counts_where_it_is_larger_than_its_image(side: int, tile: int) -> None:
    data = tiled_tiff(side, tile)
    admitted: list[int] = []
    assert decode_image(data, LIMITS, admit=admitted.append).pixels.shape == (side, side, 3)
    assert admitted == [max(side, -(-tile // 16) * 16) ** 2]


def test_kinds_that_take_twice_the_memory_count_twice() -> None:
    deep = np.zeros((20, 24, 3), np.uint16)
    for data, factor in (
        (animation("WEBP", lossless=True), 2),
        (cv2.imencode(".tiff", deep)[1].tobytes(), 2),
        (cv2.imencode(".tiff", deep.astype(np.uint8))[1].tobytes(), 1),
        (encoded(rgb(), "WEBP"), 1),
        (animation("GIF"), 1),
        (encoded(Image.new("I;16", (24, 20)), "TIFF"), 1),
    ):
        admitted: list[int] = []
        assert decode_image(data, LIMITS, admit=admitted.append).pixels.shape == (20, 24, 3)
        assert admitted == [factor * 20 * 24]


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (64, 32)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_honest_strips_and_tiles_are_read(
    planes: str, tile: tuple[int, int] | None, compression: str | None
) -> None:
    pixels = np.asarray(rgb(height=150, width=170))
    stored = np.moveaxis(pixels, 2, 0) if planes == "separate" else pixels
    tifffile.imwrite(
        file := BytesIO(),
        stored,
        photometric="rgb",
        planarconfig=planes,
        tile=tile,
        rowsperstrip=None if tile else 16,
        compression=compression,
    )
    np.testing.assert_array_equal(decode_image(file.getvalue(), LIMITS).pixels, pixels)


def test_a_small_picture_may_have_many_scans() -> None:
    data = encoded(rgb(64, 64).convert("L"), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    read_header(data[:start] + data[start:-2] * 60 + data[-2:], "JPEG")


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey picture in one tile, its sides rounded up to a multiple of 16."""
    tile = -(-tile // 16) * 16
    pixels = zlib.compress(bytes(tile * tile))
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tags += [(277, 3, 1, 1), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 200)]
    tags += [(325, 4, 1, len(pixels))]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = bombs.TIFF_HEAD + struct.pack("<H", len(tags)) + table + bytes(4)
    return head.ljust(200, b"\0") + pixels


def test_honest_directories_pass() -> None:
    check_directory(encoded(rgb(), "TIFF")[:])
    check_directory(encoded(rgb(), "TIFF", big_tiff=True))
    check_directory(exif(6).tobytes().removeprefix(b"Exif\0\0"))
    check_directory(b"")
    check_directory(b"II*\0\xff\xff\xff\xff")
    check_directory(b"no directory")


@pytest.mark.parametrize("head", [b"MM\0*", b"II*\0", b"MM*\0", b"II\0*"])
def test_every_head_that_pillow_reads_is_checked(head: bytes) -> None:
    order = "<" if head.startswith(b"II") else ">"
    entries = struct.pack(order + "HHII", 1000, 1, 100_000, 8) * 5
    with pytest.raises(ValueError, match="more bytes than there are"):
        check_directory(head + struct.pack(order + "IH", 8, 5) + entries)


def test_large_tiff_directory_is_checked() -> None:
    entries = struct.pack("<HHQQ", 1000, 1, 100_000, 8) * 5
    with pytest.raises(ValueError, match="more bytes than there are"):
        check_directory(b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 5) + entries)


def test_progressive_photo_with_large_comment_and_profile_is_read() -> None:
    data = encoded(
        rgb(200, 300),
        "JPEG",
        progressive=True,
        comment=b"x" * 60_000,
        icc_profile=bytes(500_000),
        exif=exif(6),
    )
    assert decode_image(data, LIMITS).pixels.shape == (300, 200, 3)


def test_short_run_length_encoded_bmp_is_read() -> None:
    data = bytearray(encoded(Image.new("L", (4, 2)), "BMP"))
    data[30] = 1
    start = int.from_bytes(data[10:14], "little")
    picture = bytes(data[:start]) + b"\x04\x00\x00\x00" * 2 + b"\x00\x01"
    assert decode_image(picture, LIMITS).pixels.shape == (2, 4, 3)
