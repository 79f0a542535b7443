"""What the first bytes of an image file say, read before any decoder sees them.

Pillow takes the size of a JPEG, PNG or BMP from its header alone. For three formats opening is
already work: WebP allocates its canvas, GIF may fill one, and counting the frames of a GIF or TIFF
costs time that a crafted file chooses. Those three are read here, so that a limit on pixels can be
held before Pillow is called; PNG too, so that an oversized header is called that even where
nothing follows it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_COUNTED_FRAMES = 10_000

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)

_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B
_GIF_COMMENT, _GIF_APPLICATION = 0xFE, 0xFF


@dataclass(frozen=True)
class ImageHeader:
    """Size and frame count that a file announces.

    ``width`` and ``height`` are in pixels as stored (before EXIF rotation), None where Pillow reads
    them from the header without decoding; ``frames`` is None where Pillow knows it at no cost. At
    most ``MAX_COUNTED_FRAMES`` frames are counted.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None


def sniff_format(data: bytes) -> str | None:
    """Pillow's name of the format these bytes start like: one of the seven signatures, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _SIGNATURES if data.startswith(magic)), None)


def read_header(data: bytes, image_format: str) -> ImageHeader:
    """Read what must be known of ``data`` before Pillow opens it.

    Raises ValueError, IndexError or struct.error where the header is cut or contradicts itself.
    """
    if image_format == "GIF":
        return _gif_header(data)
    if image_format == "WEBP":
        return _webp_header(data)
    if image_format == "PNG" and data[12:16] == b"IHDR":
        return ImageHeader(*struct.unpack_from(">II", data, 16))
    if image_format == "TIFF":
        return ImageHeader(frames=sum(1 for _ in _tiff_directories(data)))
    return ImageHeader()


def _webp_header(data: bytes) -> ImageHeader:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError("no WebP bitstream header")
    return ImageHeader(width, height)


def _gif_header(data: bytes) -> ImageHeader:
    """The canvas of the first frame, which may reach over the screen, and the number of frames."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_table_bytes(flags)
    frames = 0
    while position < len(data) and frames < MAX_COUNTED_FRAMES:
        block = data[position]
        if block == _GIF_TRAILER:
            break
        if block == _GIF_EXTENSION:
            position = _skip_gif_extension(data, position)
        elif block == _GIF_IMAGE and position + 10 <= len(data):
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
            if frames == 0:
                width, height = max(width, left + columns), max(height, top + rows)
            frames += 1
            # 10 bytes of descriptor, a colour table, one byte of LZW code size, the sub-blocks
            position = _skip_gif_blocks(data, position + 11 + _gif_table_bytes(flags))
        else:
            position += 1  # decoders step over stray bytes between blocks
    return ImageHeader(width, height, max(1, frames))


def _gif_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_gif_extension(data: bytes, position: int) -> int:
    """The position after an extension that starts at ``position``.

    Pillow loses its place after the two kinds of empty extension refused here, and would then find
    another first frame, of another size, than this reader.
    """
    label, first = data[position + 1], position + 2
    if label != _GIF_COMMENT and data[first] == 0:
        raise ValueError("empty GIF extension")
    if label == _GIF_APPLICATION and data.startswith(b"NETSCAPE2.0", first + 1):
        after_name = first + 1 + data[first]
        if data[after_name] == 0:
            raise ValueError("empty GIF application extension")
    return _skip_gif_blocks(data, first)


def _skip_gif_blocks(data: bytes, position: int) -> int:
    while position < len(data) and data[position]:
        position += data[position] + 1
    return position + 1


def _tiff_directories(data: bytes) -> Iterator[int]:
    """Offsets of the image file directories, in order; ends at a loop, a cut or the cap."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    count_format, entry_bytes, offset_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    count_bytes = struct.calcsize(f"={count_format}")
    (offset,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_COUNTED_FRAMES:
        seen.add(offset)
        yield offset
        try:
            (entries,) = struct.unpack_from(order + count_format, data, offset)
            after_entries = offset + count_bytes + entries * entry_bytes
            (offset,) = struct.unpack_from(order + offset_format, data, after_entries)
        except struct.error:  # cut off: the directories before it still count
            return
