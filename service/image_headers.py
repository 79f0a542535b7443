"""What the first bytes of an image file say, read before any decoder sees them.

Opening a file is already work of an amount that a crafted file chooses: WebP allocates its canvas,
GIF may fill one, frames are counted, comments joined, and the entries of a TIFF directory (Exif is
one too) may all name the same megabytes. So the structure is walked here first, at a bounded cost,
and what could cost more than an honest file is refused before Pillow or OpenCV is called.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_COUNTED_FRAMES = 10_000
# More than any honest file of the size limit has; each costs its decoder a step in Python.
MAX_GIF_BLOCKS = 200_000
MAX_JPEG_SEGMENTS = 10_000
MAX_JPEG_JUNK_BYTES = 4096
MAX_PNG_CHUNKS = 20_000
MAX_WEBP_CHUNKS = 20_000
# Of Exif, colour profiles and XMP, which decoders copy several times.
MAX_METADATA_BYTES = 8 * 1024 * 1024
# What all compressed text and profiles of a PNG could come to, at 2 ms a megabyte. Pillow inflates
# each, also where it fails at its end, and at most so much of it.
MAX_PNG_INFLATED_BYTES = 20 * 1024 * 1024
MAX_PNG_CHUNK_INFLATED_BYTES = 1024 * 1024
MAX_TIFF_STRIPS = 70_000
# Decoders join a GIF's comments block by block, in time that grows with the square.
MAX_GIF_COMMENT_BYTES = 256 * 1024
# A progressive JPEG is decoded once for each scan; encoders make about ten.
MAX_JPEG_SCANS = 100
# A camera writes one; what is larger than a segment takes some more.
MAX_EXIF_SEGMENTS = 32
# The same, of those times the pixels: decoded at 0.8 ns each.
MAX_JPEG_SCANNED_PIXELS = 1_280_000_000
# Run-length encoded BMPs are decoded in Python, their empty rows too.
MIN_BMP_RLE_BYTES = 256 * 1024
MAX_BMP_RLE_BYTES = 1024 * 1024
MAX_BMP_RLE_PIXELS = 4 * 1024 * 1024
# Of tables and of what Photoshop notes in a JPEG, both of which Pillow reads piece by piece.
MAX_JPEG_TABLE_BYTES = 64 * 1024
MAX_PHOTOSHOP_NOTES = 1000
# As much text of a PNG as Pillow takes; see service.imaging.
MAX_PNG_TEXT_BYTES = 4 * 1024 * 1024
# Of a file, looked through at a time.
PART_BYTES = 1024 * 1024
# By how much the entries of a directory may share the bytes they name, and a TIFF's strips theirs.
MAX_DIRECTORY_OVERLAP_BYTES = 64 * 1024
# Numbers in an entry, each of which Pillow may make an object of: those of a 16-bit colour table.
MAX_TIFF_VALUES = 3 * 65_536
MAX_TIFF_FRACTIONS = 1024

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
_JPEG_SCAN, _JPEG_TABLE, _JPEG_APP1, _JPEG_APP2, _JPEG_APP13 = 0xDA, 0xDB, 0xE1, 0xE2, 0xED
_PHOTOSHOP_NOTE = b"8BIM"
_JPEG_END = 0xD9
# All that start a frame (SOF), and those of them that may be decoded in one scan.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xCC}
_JPEG_SEQUENTIAL = frozenset((0xC0, 0xC1))
_MAX_PLAIN_SEGMENTS = 64
# In a scan's data, FF is followed by 00 or, between its parts, by D0 to D7.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
# Without a length; those below C0 are reserved, and libjpeg steps over them in a scan's data.
_JPEG_BARE = frozenset((*range(0xC0), *range(0xD0, 0xDA)))
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"
_PNG_COMPRESSED = (b"iCCP", b"zTXt", b"iTXt")
_PNG_TEXT = (b"tEXt", b"iTXt", b"zTXt")
_WEBP_METADATA = (b"ICCP", b"EXIF", b"XMP ")
_MOST_INFLATED = 1032  # times its length: the best that deflate can do
_BMP_RLE = (1, 2)
_TIFF_STRIP_TAGS = (273, 279, 324, 325)  # offsets and lengths of strips and of tiles
_TIFF_OFFSET_TAGS, _TIFF_LENGTH_TAGS = (273, 324), (279, 325)
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_COMPRESSION, _TIFF_ROWS = 256, 257, 259, 278
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
# One number each, of how the pixels are stored; with them the photometric interpretation, the order
# of bits, samples, planes and the predictor.
_TIFF_NUMBERS = frozenset((256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323))
_TIFF_KINDS, _TIFF_KINDS_OF_BIG = (3, 4), (3, 4, 16)
_TIFF_UNCOMPRESSED, _TIFF_JPEG = 1, (6, 7)
_EXIF_NUMBERS = (0x112, 0x11A, 0x128)  # orientation, resolution and its unit
# Below it are those that say how the pixels are stored; documents and profiles are above.
_FIRST_FOREIGN_TAG = 700
_TIFF_METADATA = (700, 34675)  # XMP, colour profile: what Pillow reads unasked
_TIFF_BYTES, _TIFF_TEXT, _TIFF_FRACTIONS = (1, 2, 7), 2, (5, 10)
_TIFF_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4"}
_TIFF_INTEGERS |= {16: "u8", 17: "i8", 18: "u8"}
_TIFF_TYPE_BYTES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), strict=True))
_TIFF_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_MAX_DIRECTORY_ENTRIES = 65_535


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
        return _jpeg_header(data)
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
        _check_tiff(data)
        return ImageHeader(frames=sum(1 for _ in _tiff_directories(data)))
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


def _jpeg_header(data: bytes) -> ImageHeader:
    """Walk the segments before the first scan as Pillow does. Raises ValueError."""
    exif = []
    may_be_turned = False
    pixels = 1
    tables = notes = 0
    for marker, segment in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", segment, 1)
            pixels = max(pixels, height * width)
        may_be_turned |= marker == _JPEG_APP1
        if marker == _JPEG_APP1 and segment.startswith(_EXIF):
            exif.append(segment[len(_EXIF) :])
            # Pillow joins them one by one: many small ones would keep it busy for minutes.
            if len(exif) > MAX_EXIF_SEGMENTS:
                raise ValueError("too many Exif segments")
        if marker == _JPEG_TABLE:
            tables += len(segment)
        if marker == _JPEG_APP13:
            notes += segment.count(_PHOTOSHOP_NOTE)
        if marker == _JPEG_APP2 and segment.startswith(_MPF):
            check_directory(segment[len(_MPF) :])
    if tables > MAX_JPEG_TABLE_BYTES or notes > MAX_PHOTOSHOP_NOTES:
        raise ValueError("too many JPEG tables or notes")
    check_directory(b"".join(exif))
    _check_jpeg_scans(data, min(MAX_JPEG_SCANS, MAX_JPEG_SCANNED_PIXELS // pixels))
    return ImageHeader(may_be_turned=may_be_turned)


def _scan_markers(data: bytes) -> NDArray[np.intp]:
    """Where the bytes FF DA are in a file; in a third of the time of bytes.find()."""
    values = np.frombuffer(data, np.uint8)
    found = []
    for start in range(0, len(values), PART_BYTES):
        part = values[start : start + PART_BYTES + 1]
        found.append(start + np.flatnonzero((part[:-1] == 0xFF) & (part[1:] == _JPEG_SCAN)))
    return np.concatenate(found)


def _has_one_scan(data: bytes) -> bool:
    """Whether libjpeg ends with the first scan: sequential, with every component of the frame.

    Where segments do not follow one another without a gap, decoders may disagree: that is a no.
    """
    position, components = 2, 0
    for _ in range(_MAX_PLAIN_SEGMENTS):
        head = data[position : position + 10]  # FF, marker, length, and of a frame 5 bytes, count
        if len(head) < 10 or head[0] != 0xFF or head[1] in _JPEG_BARE or head[1] == 0xFF:
            return False
        marker, length = head[1], int.from_bytes(head[2:4], "big")
        if marker == _JPEG_SCAN:
            return 0 < components == head[4]
        if marker in _JPEG_FRAMES:
            if marker not in _JPEG_SEQUENTIAL or components:
                return False
            components = head[9]
        position += 2 + length
    return False


def _check_jpeg_scans(data: bytes, most: int) -> None:
    """Count scans up to the end of the image as libjpeg does. Raises ValueError for too many.

    What follows the image is no part of it: some cameras append a video.
    """
    if _has_one_scan(data) or len(_scan_markers(data)) <= most:
        return  # libjpeg decodes no more scans than that, wherever the image ends
    scans, position = 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[1][0] == _JPEG_END:
            return
        position = found.end()
        if found[1][0] == _JPEG_SCAN:
            scans += 1
            if scans > most:
                raise ValueError("too many JPEG scans")
        if found[1][0] not in _JPEG_BARE and position + 2 <= len(data):
            position += struct.unpack_from(">H", data, position)[0]
    raise ValueError("too many JPEG segments")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with their segments up to the first scan; ValueError where there are too many."""
    position = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = data.find(0xFF, position, position + MAX_JPEG_JUNK_BYTES)
        if found < 0 and position + MAX_JPEG_JUNK_BYTES < len(data):
            raise ValueError("too much between JPEG segments")
        marker = data[found + 1] if 0 <= found < len(data) - 1 else _JPEG_SCAN
        if marker == _JPEG_SCAN:
            return
        if marker == 0xFF:  # padding
            position = found + 1
        elif marker in _JPEG_BARE:
            position = found + 2
        else:
            (length,) = struct.unpack_from(">H", data, found + 2)
            yield marker, data[found + 4 : found + 2 + length]
            position = found + 2 + length
    raise ValueError("too many JPEG segments")


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


# Tag, kind of number, how many, and the numbers themselves where they fit, else their offset.
_Entry = tuple[int, int, int, bytes]


class _Directory:
    """The first directory of a TIFF file, or of Exif data. ValueError for too many entries.

    Data that is no TIFF structure, or is cut, has no entries: that is left to Pillow.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self.is_big = data[2:3] == b"+"  # as Pillow tells
        self.entries: Iterator[_Entry] = iter(())
        if len(data) < 8 or data[:2] not in (b"II", b"MM"):
            return
        order, big = self._order, self.is_big
        try:
            (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
            (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        except struct.error:
            return
        entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
        first = offset + (8 if big else 2)
        whole = min(entries, max(0, len(data) - first) // entry.size, _MAX_DIRECTORY_ENTRIES + 1)
        if whole > _MAX_DIRECTORY_ENTRIES:
            raise ValueError("too many TIFF entries")
        self.entries = entry.iter_unpack(data[first : first + whole * entry.size])

    def numbers(self, entry: _Entry) -> NDArray[np.float64]:
        """The integers of an entry, those that there are."""
        _, kind, length, value = entry
        numbers = np.dtype(self._order + _TIFF_INTEGERS.get(kind, "u1"))
        if length * numbers.itemsize > len(value):
            offset = int.from_bytes(value, "little" if self._order == "<" else "big")
            value = self._data[offset : offset + length * numbers.itemsize]
        count = min(length, len(value) // numbers.itemsize)
        return np.frombuffer(value, numbers, count).astype(np.float64)


def check_directory(data: bytes) -> None:
    """Hold the first directory of Exif data, or its like, to the bytes that there are.

    Pillow keeps a copy of what each entry names. Raises ValueError.
    """
    named = 0
    for tag, kind, length, _ in _Directory(data).entries:
        named += length * _TIFF_TYPE_BYTES.get(kind, 0)
        # Pillow makes numbers of no others.
        if tag in _EXIF_NUMBERS and length > MAX_TIFF_FRACTIONS:
            raise ValueError("too many values of an Exif entry")
    _check_named(named, len(data))


def _check_named(named: int, there: int) -> None:
    if named > 2 * there + MAX_DIRECTORY_OVERLAP_BYTES:
        raise ValueError("TIFF entries that name more bytes than there are")


def _check_tiff(data: bytes) -> None:
    """Hold a TIFF file to what Pillow and libtiff, which decodes it, both read in it the same way.

    Either takes entries that the other passes over: of a kind of number that it does not know, or
    of a tag that it has seen before. Raises ValueError.
    """
    directory = _Directory(data)
    kinds = _TIFF_KINDS_OF_BIG if directory.is_big else _TIFF_KINDS
    storage: dict[int, _Entry] = {}
    named = 0
    for entry in directory.entries:
        tag, kind, length, _ = entry
        named += length * _TIFF_TYPE_BYTES.get(kind, 0)
        is_array = tag in _TIFF_STRIP_TAGS
        if length > (MAX_TIFF_STRIPS if is_array else _most_values(tag, kind)):
            raise ValueError("too many values of a TIFF entry")
        if not is_array and tag not in _TIFF_NUMBERS:
            continue
        if tag in storage:
            raise ValueError("a TIFF tag that occurs twice")
        if kind not in kinds or not (is_array or length == 1):
            raise ValueError("a TIFF entry of an unusual kind")
        storage[tag] = entry
    _check_named(named, len(data))
    _check_strips(data, directory, storage)


def _check_strips(data: bytes, directory: _Directory, storage: dict[int, _Entry]) -> None:
    """Strips or tiles that are compressed may not share their bytes, nor be JPEGs of many scans."""

    def number(tag: int, default: float) -> float:
        entry = storage.get(tag)
        return float(directory.numbers(entry).max(initial=0)) if entry is not None else default

    compression = number(_TIFF_COMPRESSION, _TIFF_UNCOMPRESSED)
    if compression == _TIFF_UNCOMPRESSED:
        return  # Pillow reads it, and no more of it than the picture has
    for starts, lengths in zip(_TIFF_OFFSET_TAGS, _TIFF_LENGTH_TAGS, strict=True):
        if lengths not in storage:
            continue
        sizes = directory.numbers(storage[lengths])
        if np.abs(sizes).sum() > 2 * len(data) + MAX_DIRECTORY_OVERLAP_BYTES:
            raise ValueError("TIFF strips or tiles that share their bytes")
        if compression not in _TIFF_JPEG or starts not in storage:
            continue
        offsets = directory.numbers(storage[starts])
        count = min(len(offsets), len(sizes))
        scans = _scans_within(data, offsets[:count], offsets[:count] + sizes[:count])
        width, height = number(_TIFF_WIDTH, 0), number(_TIFF_HEIGHT, 0)
        pixels = width * min(height, number(_TIFF_ROWS, height))
        tile = number(_TIFF_TILE_WIDTH, 0) * number(_TIFF_TILE_HEIGHT, 0)
        if scans * max(pixels if starts == _TIFF_OFFSET_TAGS[0] else 0, tile) > (
            MAX_JPEG_SCANNED_PIXELS
        ):
            raise ValueError("too many JPEG scans")


def _scans_within(data: bytes, starts: NDArray[np.float64], ends: NDArray[np.float64]) -> int:
    """How many scans of a JPEG begin in these parts of a file, all together."""
    markers = _scan_markers(data)
    return int((np.searchsorted(markers, ends) - np.searchsorted(markers, starts)).sum())


def _most_values(tag: int, kind: int) -> float:
    if kind in _TIFF_FRACTIONS:
        return MAX_TIFF_FRACTIONS
    if kind in (*_TIFF_BYTES, _TIFF_TEXT):
        if tag in _TIFF_METADATA:
            return MAX_METADATA_BYTES
        if kind == _TIFF_TEXT or tag >= _FIRST_FOREIGN_TAG:
            return math.inf
    return MAX_TIFF_VALUES


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
