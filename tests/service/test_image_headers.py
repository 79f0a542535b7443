"""Sizes and frame counts read from the bytes agree with Pillow's and stay bounded."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pytest
from PIL import Image

from service.image_headers import MAX_COUNTED_FRAMES, read_header, sniff_format
from service.jpeg_headers import MAX_SCANS, PART_BYTES
from tests.service.image_files import animation, encoded, rgb


@pytest.mark.parametrize("position", [1000, PART_BYTES - 2, PART_BYTES - 1, PART_BYTES])
def test_scans_are_counted_wherever_a_part_of_the_file_ends(position: int) -> None:
    scan = b"\xff\xda\0\x02"
    first = b"\xff\xd8" + scan
    data = first + bytes(position - len(first)) + scan * (MAX_SCANS - 1)
    read_header(data, "JPEG")
    with pytest.raises(ValueError, match="too many JPEG scans"):
        read_header(data + scan, "JPEG")


def with_many_scans(head: bytes, scan: bytes) -> bytes:
    return head + scan + b"\0" * 8 + b"\xff\xda\0\x02" * (2 * MAX_SCANS) + b"\xff\xd9"


def jpeg_in_parts() -> tuple[bytes, bytes]:
    """A baseline JPEG in colour: all before its scan's header, and that header."""
    data = encoded(rgb(), "JPEG")
    start = data.index(b"\xff\xda")
    return data[:start], data[start : start + 14]


def test_scans_are_not_counted_where_libjpeg_ends_with_the_first() -> None:
    head, scan = jpeg_in_parts()
    read_header(with_many_scans(head, scan), "JPEG")


def frame_again(head: bytes) -> bytes:
    start = head.index(b"\xff\xc0")
    return head + head[start : start + 2 + int.from_bytes(head[start + 2 : start + 4], "big")]


@pytest.mark.parametrize(
    "change",
    [
        lambda head, scan: (head.replace(b"\xff\xc0", b"\xff\xc2"), scan),
        lambda head, scan: (head, scan[:4] + b"\1" + scan[5:]),
        lambda head, scan: (frame_again(head), scan),
        lambda head, scan: (head + b"\xff\xfe\0\2" * 100, scan),
    ],
    ids=["progressive", "one component", "two frames", "many segments"],
)
def test_scans_are_counted_where_there_may_be_more_than_one(
    change: Callable[[bytes, bytes], tuple[bytes, bytes]],
) -> None:
    with pytest.raises(ValueError, match="too many JPEG scans"):
        read_header(with_many_scans(*change(*jpeg_in_parts())), "JPEG")


def progressive_behind(odd: bytes) -> bytes:
    """Progressive scans without end. Whoever takes `odd` for a marker with a length is led astray.

    Within a segment, to a sequential frame and its one scan.
    """
    start = b"\xff\xd8" + odd + b"\xff\xe0\xff\xff"
    astray = 4 + int.from_bytes(start[4:6], "big")
    frame = b"\xff\xc0\0\x0b\x08\0\x14\0\x18\1\1\x11\0" + b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    segment = (start + bytes(astray - len(start)) + frame).ljust(2 + len(odd) + 2 + 65535, b"\0")
    data = encoded(rgb(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return segment + data[2:-2] + last * (2 * MAX_SCANS) + b"\xff\xd9"


@pytest.mark.parametrize(
    "odd",
    [b"\0\xe1", b"\xff", b"\xff\0", b"\xff\xd0"],
    ids=["stray bytes", "padding", "stuffed byte", "bare marker"],
)
def test_scans_are_counted_where_decoders_may_find_other_segments(odd: bytes) -> None:
    with pytest.raises(ValueError, match="too many JPEG scans"):
        read_header(progressive_behind(odd), "JPEG")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_each_format_is_known_by_its_first_bytes(image_format: str) -> None:
    assert sniff_format(encoded(rgb(), image_format)) == image_format


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", b"GIF90a", b"II\0*"])
def test_other_bytes_are_of_no_format(data: bytes) -> None:
    assert sniff_format(data) is None


@pytest.mark.parametrize(
    "data",
    [
        encoded(rgb(height=33, width=257), "WEBP"),
        encoded(rgb(height=33, width=257), "WEBP", lossless=True),
        encoded(rgb(height=33, width=257).convert("RGBA"), "WEBP"),
        animation("WEBP"),
    ],
    ids=["lossy", "lossless", "extended", "animated"],
)
def test_webp_size_agrees_with_pillow(data: bytes) -> None:
    header = read_header(data, "WEBP")
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size


@pytest.mark.parametrize(
    "data",
    [
        encoded(rgb(), "GIF"),
        encoded(rgb().convert("L"), "GIF", comment=b"c" * 700),
        animation("GIF", frames=7, duration=[10] * 7, loop=2, disposal=2),
        animation("GIF", frames=4)[:-1],
    ],
    ids=["single", "comment", "animated", "no trailer"],
)
def test_gif_size_and_frames_agree_with_pillow(data: bytes) -> None:
    header = read_header(data, "GIF")
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size
        assert header.frames == getattr(image, "n_frames", None)


def test_pages_of_a_tiff_are_counted_in_either_byte_order_and_width_of_offset() -> None:
    assert read_header(animation("TIFF", frames=5), "TIFF").frames == 5
    assert read_header(animation("TIFF", frames=5, big_tiff=True), "TIFF").frames == 5
    page = struct.pack(">H", 1) + bytes(12)
    data = struct.pack(">2sHI", b"MM", 42, 8) + page + struct.pack(">I", 26) + page + bytes(4)
    assert read_header(data, "TIFF").frames == 2


def test_a_tiff_whose_directories_form_a_ring_ends() -> None:
    page = struct.pack("<H", 0)
    data = b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", 14)
    data += page + struct.pack("<I", 8)
    assert read_header(data, "TIFF").frames == 2


def test_the_count_of_frames_is_bounded() -> None:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    assert read_header(screen + frame * 20_000, "GIF").frames == MAX_COUNTED_FRAMES

    pages = b"".join(struct.pack("<HI", 0, 8 + 6 * (page + 1)) for page in range(20_000))
    assert read_header(b"II*\0" + struct.pack("<I", 8) + pages, "TIFF").frames == MAX_COUNTED_FRAMES


@pytest.mark.parametrize(
    "extension",
    [
        b"!\xf9\0",  # a graphic control extension without its block
        b"!\xff\x0bNETSCAPE2.0\0",  # an application extension without its data
    ],
)
def test_empty_gif_extensions_that_decoders_disagree_on_are_refused(extension: bytes) -> None:
    data = encoded(rgb(), "GIF")
    image_at = data.index(b",\0\0\0\0")
    with pytest.raises(ValueError, match="empty GIF"):
        read_header(data[:image_at] + extension + data[image_at:], "GIF")


def test_a_webp_without_a_bitstream_header_is_refused() -> None:
    with pytest.raises(ValueError, match="bitstream"):
        read_header(b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20), "WEBP")
