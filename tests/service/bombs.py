"""Small files that ask for much memory or time, made in memory, by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.service.image_files import encoded, rgb

TIFF_HEAD = b"II*\0\x08\0\0\0"
MEGABYTE = 1_000_000


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, side: int = 16, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose pixels are all zero, with further chunks before them."""
    pack = zlib.compressobj(9)
    row = bytes(1 + (side * bits * {0: 1, 2: 3}[colour] + 7) // 8)
    pixels = b"".join([*(pack.compress(row) for _ in range(side)), pack.flush()])
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def jpeg(*segments: bytes) -> bytes:
    data = encoded(rgb(64, 64), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data


def overlapping_directory(size: int, *, entries: int = 60_000) -> bytes:
    """TIFF data whose entries all name the same bytes: nearly all of them."""
    entries = min(entries, (size - 64) // 12)
    named = size - 8
    table = b"".join(struct.pack("<HHII", tag, 1, named, 8) for tag in range(1000, 1000 + entries))
    head = TIFF_HEAD + struct.pack("<H", entries) + table + bytes(4)
    return head.ljust(size, b"\0")


# --- too many pixels ----------------------------------------------------------------------------


def png_of_400_megapixels() -> bytes:
    return png(side=20_000, bits=1, colour=0)


def jpeg_of_4_gigapixels() -> bytes:
    data = bytearray(encoded(rgb(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def gif_of_4_gigapixels() -> bytes:
    data = bytearray(encoded(rgb(), "GIF"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def webp_of_268_megapixels() -> bytes:
    data = bytearray(encoded(rgb(), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    return bytes(data)


def tiff_of_400_megapixels() -> bytes:
    return encoded(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4")


# --- too much else ------------------------------------------------------------------------------


def tiff_entries() -> bytes:
    return overlapping_directory(4 * MEGABYTE)


def tiff_strips() -> bytes:
    count = 2 * MEGABYTE
    tags = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 4, 1, 8), (262, 4, 1, 1)]
    tags += [(273, 4, count, 200), (277, 4, 1, 1), (278, 4, 1, 1), (279, 4, count, 200)]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = TIFF_HEAD + struct.pack("<H", len(tags)) + table + bytes(4)
    return head.ljust(200 + 4 * count, b"\1")


def strips_over(side: int, rows: int, offsets: list[int]) -> bytes:
    """A picture of black and white, uncompressed: strips of so many rows at these offsets."""
    body = bytes(side * side // 8 + len(offsets))
    table = 8 + len(body)
    arrays = b"".join(struct.pack("<I", 8 + offset) for offset in offsets)
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, len(offsets), table), (277, 3, 1, 1), (278, 4, 1, rows)]
    tags += [(279, 4, len(offsets), table)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", table + len(arrays))
    return head + body + arrays + struct.pack("<H", len(tags)) + entries + bytes(4)


def packed_strips(compression: int, rows: int, strips: list[bytes], count: int = 1) -> bytes:
    """A grey picture 8000 wide: strips of so many rows, each named `count` times."""
    body, offsets = b"", list[int]()
    for strip in strips:
        offsets += [8 + len(body)] * count
        body += strip
    lengths = [len(strip) for strip in strips for _ in range(count)]
    table = 8 + len(body)
    arrays = struct.pack(f"<{2 * len(offsets)}I", *offsets, *lengths)
    many = len(offsets)
    tags = [(256, 4, 1, 8000), (257, 4, 1, rows * many), (258, 3, 1, 8), (259, 3, 1, compression)]
    tags += [(262, 3, 1, 1), (273, 4, many, table), (277, 3, 1, 1), (278, 4, 1, rows)]
    tags += [(279, 4, many, table + 4 * many)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", table + len(arrays))
    return head + body + arrays + struct.pack("<H", len(tags)) + entries + bytes(4)


def tiff_strips_that_share_their_bytes() -> bytes:
    """Each is a megabyte of PackBits that mean nothing, then a row: 2 s of CPU time in all."""
    row = b"\x81\0" * 62 + bytes((256 - 63, 0))
    return packed_strips(32773, 1, [b"\x80" * MEGABYTE + row], count=5000)


def tiff_of_progressive_jpegs() -> bytes:
    """Ten strips, each a JPEG of nearly as many scans as libtiff takes."""
    whole = encoded(Image.new("L", (8000, 800)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return packed_strips(7, 800, [whole[:-2] + whole[last:-2] * 80 + whole[-2:]] * 10)


def tiff_of_values(tag: int, kind: int, size: int, count: int) -> bytes:
    """A sound picture, and an entry of so many values."""
    data = bytearray(encoded(rgb(16, 16), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    table = data[start + 2 : start + 2 + 12 * entries]
    table += struct.pack("<HHII", tag, kind, count, len(data))
    rows = sorted(table[at : at + 12] for at in range(0, len(table), 12))
    rows.sort(key=lambda row: struct.unpack_from("<H", row))
    struct.pack_into("<I", data, 4, len(data) + size * count)
    data += b"\1" * (size * count)
    return bytes(data + struct.pack("<H", entries + 1) + b"".join(rows) + bytes(4))


def tiff_resolution_of_many_fractions() -> bytes:
    return tiff_of_values(282, 5, 8, 500_000)


def tiff_colour_table() -> bytes:
    return tiff_of_values(320, 3, 2, 5 * MEGABYTE)


def tiff_profile_of_numbers() -> bytes:
    return tiff_of_values(34675, 3, 2, 4_000_000)


def as_seen_by_libtiff_alone(data: bytes, *tags: int) -> bytes:
    """Pillow does not know numbers of this kind (SLONG8), and passes them over."""
    for tag in tags:
        data = data.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", tag, 17, 1))
    return data


def tiff_tile_that_pillow_does_not_see() -> bytes:
    return as_seen_by_libtiff_alone(tiff_tile(), 322, 323)


def tiff_of_progressive_jpegs_in_strips_that_pillow_does_not_see() -> bytes:
    return as_seen_by_libtiff_alone(tiff_of_progressive_jpegs(), 278)


def tiff_colour_profile() -> bytes:
    return tiff_of_values(34675, 7, 1, 16 * MEGABYTE)


def tiff_strips_over_one_another() -> bytes:
    return strips_over(8000, 4000, [4_000_000 * (strip % 2) + strip for strip in range(20)])


def tiff_strips_a_byte_apart() -> bytes:
    return strips_over(4000, 2000, [0, 1])


def tiff_tile() -> bytes:
    """An image of 16 by 16 pixels in one tile of 64 million, 16 bits a colour."""
    side = 7984
    pixels = zlib.compress(bytes(8 * side * side), 9)
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 4, 300), (259, 3, 1, 8), (262, 3, 1, 2)]
    tags += [(277, 3, 1, 4), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 308)]
    tags += [(325, 4, 1, len(pixels)), (338, 3, 1, 2)]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = TIFF_HEAD + struct.pack("<H", len(tags)) + table + bytes(4)
    return head.ljust(300, b"\0") + struct.pack("<HHHH", *[16] * 4) + pixels


def jpeg_exif() -> bytes:
    exif = overlapping_directory(2 * MEGABYTE)
    pieces = [exif[i : i + 65_000] for i in range(0, len(exif), 65_000)]
    return jpeg(*(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces))


def jpeg_exif_in_pieces() -> bytes:
    return jpeg(*[segment(0xE1, b"Exif\0\0" + bytes(3300))] * 9000)


def jpeg_previews() -> bytes:
    return jpeg(segment(0xE2, b"MPF\0" + overlapping_directory(65_000)))


def jpeg_comments() -> bytes:
    return jpeg(segment(0xFE, b"") * (4 * MEGABYTE))


def jpeg_padding() -> bytes:
    return jpeg(b"\xff" * (16 * MEGABYTE))


def jpeg_junk() -> bytes:
    return jpeg(segment(0xFE, b"x"), bytes(16 * MEGABYTE))


def jpeg_scans() -> bytes:
    data = encoded(rgb(1024, 1024), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 2000 + data[-2:]


def jpeg_scans_of_a_large_picture() -> bytes:
    """Fewer than a small picture may have."""
    data = encoded(Image.new("L", (5000, 5000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 60 + data[-2:]


def jpeg_scans_behind_a_comment() -> bytes:
    """The comment holds what looks like the image's end."""
    data = encoded(rgb(1024, 1024), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    comment = segment(0xFE, b"\xff\xd9")
    return data[:start] + comment + data[start:-2] * 2000 + data[-2:]


def jpeg_scans_behind_a_reserved_marker() -> bytes:
    """libjpeg steps over the marker in a scan's data; had it a length, that would hide scans."""
    grey, options = rgb(256, 256).convert("L"), {"progressive": True, "restart_marker_rows": 8}
    data = encoded(grey, "JPEG", quality=5, **options)
    start = data.rindex(b"\xff\xda")
    restart = data.index(b"\xff\xd0", start)
    scan = data[start : start + 10]
    return data[:restart] + b"\xff\x02\xff\xff" + data[restart:-2] + scan * 4000 + data[-2:]


def jpeg_tables() -> bytes:
    table = segment(0xDB, b"".join(bytes((number,)) + bytes(64) for number in range(4)) * 250)
    return jpeg(segment(0xE1, b"Exif\0\0"), table * 200)


def jpeg_notes_of_photoshop() -> bytes:
    note = b"8BIM" + bytes(8)
    return jpeg(segment(0xE1, b"Exif\0\0"), segment(0xED, b"Photoshop 3.0\0" + note * 5000) * 100)


def sequential_jpeg(scans: int) -> bytes:
    """Every scan holds the whole picture."""
    data = encoded(rgb(1024, 1024), "JPEG")
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * scans + data[-2:]


def png_exif() -> bytes:
    return png(png_chunk(b"eXIf", overlapping_directory(2 * MEGABYTE)))


def png_exif_as_text() -> bytes:
    lines = f"\nexif\n{500_000}\n{overlapping_directory(500_000).hex()}"
    text = b"Raw profile type exif\0\0" + zlib.compress(lines.encode(), 9)
    return png(png_chunk(b"zTXt", text))


def png_text() -> bytes:
    text = b"\0\0" + zlib.compress(bytes(MEGABYTE), 9)
    return png(*(png_chunk(b"zTXt", b"%d" % number + text) for number in range(2000)))


def png_text_that_breaks() -> bytes:
    """Inflated to a megabyte each before it proves broken, and counted by nobody then."""
    text = b"\0\0" + zlib.compress(bytes(MEGABYTE - 1), 9)[:-4] + b"oops"
    return png(*(png_chunk(b"zTXt", b"%d" % number + text) for number in range(2000)))


def png_translated_text() -> bytes:
    text = b"\0\1\0\0\0" + zlib.compress(bytes(MEGABYTE), 9)
    return png(*(png_chunk(b"iTXt", b"%d" % number + text) for number in range(2000)))


def png_profiles() -> bytes:
    profile = b"name\0\0" + zlib.compress(bytes(MEGABYTE), 9)
    return png(png_chunk(b"iCCP", profile) * 2000)


def png_profiles_before_its_header() -> bytes:
    data = png_profiles()
    header, profiles = data[8:33], data[33:]
    last = profiles.index(b"IDAT") - 4
    return data[:8] + profiles[:last] + header + profiles[last:]


def png_chunks() -> bytes:
    return png(png_chunk(b"prVt", b"") * MEGABYTE)


def values_of_orientation() -> bytes:
    """Exif of 4 MB, sound but for its 500,000 fractions: an object each, 1 s of CPU time."""
    count = 500_000
    entry = struct.pack("<HHII", 0x112, 5, count, 26)
    return TIFF_HEAD + struct.pack("<H", 1) + entry + bytes(4) + b"\1" * (8 * count)


def png_of_many_orientations() -> bytes:
    return png(png_chunk(b"eXIf", values_of_orientation()))


def webp_of_many_orientations() -> bytes:
    return encoded(rgb(), "WEBP", exif=b"Exif\0\0" + values_of_orientation())


def png_of_much_exif() -> bytes:
    return png(png_chunk(b"eXIf", TIFF_HEAD + bytes(16 * MEGABYTE)))


def png_description() -> bytes:
    return png(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(16 * MEGABYTE)))


def png_exif_of_empty_lines() -> bytes:
    text = zlib.compress(b"\n" * (MEGABYTE - 100))
    return png(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + text))


def webp_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A small WebP with further chunks behind its picture."""
    data = encoded(rgb(), "WEBP", exif=b"Exif\0\0")
    data += b"".join(kind + struct.pack("<I", len(body)) + body for kind, body in chunks)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def webp_chunks() -> bytes:
    return webp_with(*[(b"none", b"")] * MEGABYTE)


def webp_profile() -> bytes:
    return webp_with((b"ICCP", bytes(16 * MEGABYTE)))


def webp_exif() -> bytes:
    return encoded(rgb(), "WEBP", exif=b"Exif\0\0" + overlapping_directory(2 * MEGABYTE))


def gif_comment() -> bytes:
    data = encoded(rgb(), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + b"!\xfe" + (b"\xff" + b"x" * 255) * 60_000 + b"\0" + data[start:]


def gif_blocks() -> bytes:
    data = encoded(rgb(), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + b"!\x01" + b"\x01x" * (8 * MEGABYTE) + b"\0" + data[start:]


def bmp_runs() -> bytes:
    data = bytearray(encoded(Image.fromarray(np.zeros((2000, 2000), np.uint8)), "BMP"))
    data[30] = 1
    start = struct.unpack_from("<I", data, 10)[0]
    return bytes(data[:start]) + b"\x01\x07" * (4 * MEGABYTE)


def bmp_of_empty_rows() -> bytes:
    """Each of 8000 rows ends at once, and Pillow fills it up byte by byte."""
    data = bytearray(encoded(Image.fromarray(np.zeros((16, 16), np.uint8)), "BMP"))
    struct.pack_into("<ii", data, 18, 8000, 8000)
    data[30] = 1
    start = struct.unpack_from("<I", data, 10)[0]
    return bytes(data[:start]) + b"\x01\x05\0\0" * 8000


def png_of_one_column() -> bytes:
    """A quarter of a megabyte, which libpng and Pillow take a gigabyte for."""
    rows = zlib.compress(bytes(2 * 64_000_000), 9)
    header = struct.pack(">IIBBBBB", 1, 64_000_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


PIXELS: tuple[Callable[[], bytes], ...] = (
    png_of_400_megapixels,
    jpeg_of_4_gigapixels,
    gif_of_4_gigapixels,
    webp_of_268_megapixels,
    png_of_one_column,
    tiff_of_400_megapixels,
)
REFUSED: tuple[Callable[[], bytes], ...] = (
    tiff_entries,
    tiff_strips,
    tiff_strips_over_one_another,
    tiff_strips_a_byte_apart,
    tiff_strips_that_share_their_bytes,
    tiff_of_progressive_jpegs,
    tiff_resolution_of_many_fractions,
    tiff_colour_table,
    tiff_colour_profile,
    tiff_profile_of_numbers,
    tiff_tile,
    tiff_tile_that_pillow_does_not_see,
    tiff_of_progressive_jpegs_in_strips_that_pillow_does_not_see,
    jpeg_exif,
    jpeg_exif_in_pieces,
    jpeg_previews,
    jpeg_comments,
    jpeg_padding,
    jpeg_tables,
    jpeg_notes_of_photoshop,
    jpeg_junk,
    jpeg_scans,
    jpeg_scans_of_a_large_picture,
    jpeg_scans_behind_a_comment,
    jpeg_scans_behind_a_reserved_marker,
    png_chunks,
    png_text,
    png_text_that_breaks,
    png_translated_text,
    png_profiles,
    png_profiles_before_its_header,
    png_of_much_exif,
    png_description,
    webp_chunks,
    webp_profile,
    gif_comment,
    gif_blocks,
    bmp_runs,
    bmp_of_empty_rows,
)
# The picture is sound; what is said about it is not, and is left unread.
READ: tuple[Callable[[], bytes], ...] = (
    png_exif,
    png_exif_as_text,
    png_exif_of_empty_lines,
    png_of_many_orientations,
    webp_exif,
    webp_of_many_orientations,
)
