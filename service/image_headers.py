"""What the first bytes of an image file say, read before any decoder sees them.

Opening a file is already work of an amount that a crafted file chooses: WebP allocates its canvas,
GIF may fill one, frames are counted, comments joined, and the entries of a TIFF directory (Exif is
one too) may all name the same megabytes. So the structure is walked here first, at a bounded cost,
and what could cost more than an honest file is refused before Pillow or OpenCV is called.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from service.jpeg_headers import check_jpeg
from service.tiff_headers import MAX_METADATA_BYTES, check_tiff, directories

MAX_COUNTED_FRAMES = 10_000
# More than any honest file of the size limit has; each costs its decoder a step in Python.
MAX_GIF_BLOCKS = 200_000
# Decoders join a GIF's comments block by block, in time that grows with the square.
MAX_GIF_COMMENT_BYTES = 256 * 1024
MAX_PNG_CHUNKS = 20_000
MAX_WEBP_CHUNKS = 20_000
# What all compressed text and profiles of a PNG could come to, at 2 ms a megabyte. Pillow inflates
# each, also where it fails at its end, and at most so much of it.
MAX_PNG_INFLATED_BYTES = 20 * 1024 * 1024
MAX_PNG_CHUNK_INFLATED_BYTES = 1024 * 1024
# Of a PNG's text in the file, and of what it comes to: service.imaging tells Pillow.
MAX_PNG_TEXT_BYTES = 4 * 1024 * 1024
# Run-length encoded BMPs are decoded in Python, their empty rows too.
MIN_BMP_RLE_BYTES = 256 * 1024
MAX_BMP_RLE_BYTES = 1024 * 1024
MAX_BMP_RLE_PIXELS = 4 * 1024 * 1024

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
# What people send, too: known by name, so that they hear what to do about it.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"%PDF-", "PDF"),
    (b"<svg", "SVG"),
    (b"\x1aE\xdf\xa3", "video"),
)
# Of files in the ISO base media format.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V "), "video"),
}

_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B
_GIF_COMMENT, _GIF_APPLICATION = 0xFE, 0xFF
_PNG_COMPRESSED = (b"iCCP", b"zTXt", b"iTXt")
_PNG_TEXT = (b"tEXt", b"iTXt", b"zTXt")
_WEBP_METADATA = (b"ICCP", b"EXIF", b"XMP ")
_MOST_INFLATED = 1032  # times its length: the best that deflate can do
_BMP_RLE = (1, 2)


@dataclass(frozen=True)
class ImageHeader:
    """Size and frame count that a file announces.

    ``width`` and ``height`` are in pixels as stored (before EXIF rotation), None where Pillow reads
    them from the header without decoding; ``frames`` is None where Pillow knows it at no cost. At
    most ``MAX_COUNTED_FRAMES`` frames are counted. ``may_be_turned`` is false where nothing in a
    JPEG could give it an orientation, neither Exif nor XMP.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    may_be_turned: bool = True


def sniff_format(data: bytes) -> str | None:
    """Pillow's name of the format these bytes start like: one of the seven signatures, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _SIGNATURES if data.startswith(magic)), None)


def foreign_format(data: bytes) -> str | None:
    """What the bytes are, where they are a picture or document of a kind that is not read."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    return next((name for magic, name in _FOREIGN if data.startswith(magic)), None)


def read_header(data: bytes, image_format: str) -> ImageHeader:
    """Read what must be known of ``data`` before Pillow opens it.

    Raises ValueError, IndexError or struct.error where the header is cut, contradicts itself, or
    announces more work than an honest file needs.
    """
    if image_format == "JPEG":
        return ImageHeader(may_be_turned=check_jpeg(data))
    if image_format == "BMP":
        _check_bmp(data)
    if image_format == "GIF":
        return _gif_header(data)
    if image_format == "WEBP":
        return _webp_header(data)
    if image_format == "PNG":
        _check_png_chunks(data)
        if data[12:16] == b"IHDR":
            return ImageHeader(*struct.unpack_from(">II", data, 16))
    if image_format == "TIFF":
        check_tiff(data)
        return ImageHeader(frames=sum(1 for _ in directories(data, MAX_COUNTED_FRAMES)))
    return ImageHeader()


def _webp_header(data: bytes) -> ImageHeader:
    _check_webp_chunks(data)
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


def _check_webp_chunks(data: bytes) -> None:
    position, metadata = 12, 0
    for _ in range(MAX_WEBP_CHUNKS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind in _WEBP_METADATA:
            metadata += length
            if metadata > MAX_METADATA_BYTES:
                raise ValueError("too much metadata in a WebP")
        position += 8 + length + length % 2
    raise ValueError("too many WebP chunks")


def _gif_header(data: bytes) -> ImageHeader:
    """The canvas of the first frame, which may reach over the screen, and the number of frames."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    blocks = _GifBlocks(data, 13 + _gif_table_bytes(flags))
    frames = 0
    while blocks.position < len(data) and frames < MAX_COUNTED_FRAMES:
        block, position = data[blocks.position], blocks.position
        if block == _GIF_TRAILER:
            break
        if block == _GIF_EXTENSION:
            blocks.skip_extension()
        elif block == _GIF_IMAGE and position + 10 <= len(data):
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
            if frames == 0:
                width, height = max(width, left + columns), max(height, top + rows)
            frames += 1
            # 10 bytes of descriptor, a colour table, one byte of LZW code size, the sub-blocks
            blocks.skip_to_end_of(position + 11 + _gif_table_bytes(flags))
        else:
            blocks.skip_to(position + 1)  # decoders step over stray bytes between blocks
    return ImageHeader(width, height, max(1, frames))


def _gif_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


class _GifBlocks:
    """A place in a GIF file, moved over blocks; raises ValueError where there are too many."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._steps = 0
        self._comment_bytes = 0
        self.position = position

    def skip_to(self, position: int) -> None:
        self._steps += 1
        if self._steps > MAX_GIF_BLOCKS:
            raise ValueError("too many GIF blocks")
        self.position = position

    def skip_to_end_of(self, position: int) -> None:
        """Move behind the sub-blocks that begin at `position`."""
        data, end = self._data, len(self._data)
        while position < end and data[position]:
            position += data[position] + 1
            self._steps += 1
            if self._steps > MAX_GIF_BLOCKS:
                raise ValueError("too many GIF blocks")
        self.skip_to(position + 1)

    def skip_extension(self) -> None:
        """Move behind the extension that begins here.

        Pillow loses its place after the two kinds of empty extension refused here, and would then
        find another first frame, of another size, than this reader.
        """
        data, first = self._data, self.position + 2
        label = data[self.position + 1]
        if label != _GIF_COMMENT and data[first] == 0:
            raise ValueError("empty GIF extension")
        if label == _GIF_APPLICATION and data.startswith(b"NETSCAPE2.0", first + 1):
            after_name = first + 1 + data[first]
            if data[after_name] == 0:
                raise ValueError("empty GIF application extension")
        self.skip_to_end_of(first)
        if label == _GIF_COMMENT:
            self._comment_bytes += self.position - first
            if self._comment_bytes > MAX_GIF_COMMENT_BYTES:
                raise ValueError("too long GIF comments")


def _check_png_chunks(data: bytes) -> None:
    position, inflated, text = 8, 0, 0
    for _ in range(MAX_PNG_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in _PNG_COMPRESSED:
            inflated += min(_MOST_INFLATED * length, MAX_PNG_CHUNK_INFLATED_BYTES)
            if inflated > MAX_PNG_INFLATED_BYTES:
                raise ValueError("too much compressed text in a PNG")
        text += length if kind in _PNG_TEXT else 0
        if text > MAX_PNG_TEXT_BYTES:
            raise ValueError("too much text in a PNG")
        if kind == b"eXIf" and length > MAX_METADATA_BYTES:
            raise ValueError("too much Exif in a PNG")
        position += 12 + length
    raise ValueError("too many PNG chunks")


def _check_bmp(data: bytes) -> None:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes >= 40 and data[30] in _BMP_RLE:
        width, height = struct.unpack_from("<ii", data, 18)
        pixels = abs(width * height)
        # Two bytes a pixel are runs of one each: a small picture has no use for more.
        most = min(max(MIN_BMP_RLE_BYTES, 2 * pixels), MAX_BMP_RLE_BYTES)
        if len(data) > most or pixels > MAX_BMP_RLE_PIXELS:
            raise ValueError("too long run-length encoding")
