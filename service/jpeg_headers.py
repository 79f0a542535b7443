"""What the segments of a JPEG say, and how often it would be decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.image_directories import check_directory

# More than any honest file has; each costs its decoder a step in Python.
MAX_SEGMENTS = 10_000
MAX_JUNK_BYTES = 4096
# A progressive JPEG is decoded once for each scan; encoders make about ten.
MAX_SCANS = 100
# The same, of those times the pixels: decoded at 0.8 ns each.
MAX_SCANNED_PIXELS = 1_280_000_000
# A camera writes one; what is larger than a segment takes some more.
MAX_EXIF_SEGMENTS = 32
# Of tables and of what Photoshop notes in a JPEG, both of which Pillow reads piece by piece.
MAX_TABLE_BYTES = 64 * 1024
MAX_PHOTOSHOP_NOTES = 1000
# Of a file, looked through at a time.
PART_BYTES = 1024 * 1024

_SCAN, _TABLE, _APP1, _APP2, _APP13 = 0xDA, 0xDB, 0xE1, 0xE2, 0xED
_END = 0xD9
# All that start a frame (SOF), and those of them that may be decoded in one scan.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xCC}
_SEQUENTIAL = frozenset((0xC0, 0xC1))
_MAX_PLAIN_SEGMENTS = 64
# In a scan's data, FF is followed by 00 or, between its parts, by D0 to D7.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
# Without a length; those below C0 are reserved, and libjpeg steps over them in a scan's data.
_BARE = frozenset((*range(0xC0), *range(0xD0, 0xDA)))
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"
_PHOTOSHOP_NOTE = b"8BIM"


def check_jpeg(data: bytes) -> bool:
    """Walk the segments before the first scan as Pillow does. Raises ValueError.

    Returns whether anything in them could give the picture an orientation, Exif or XMP.
    """
    exif = []
    may_be_turned = False
    pixels = 1
    tables = notes = 0
    for marker, segment in _segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", segment, 1)
            pixels = max(pixels, height * width)
        may_be_turned |= marker == _APP1
        if marker == _APP1 and segment.startswith(_EXIF):
            exif.append(segment[len(_EXIF) :])
            # Pillow joins them one by one: many small ones would keep it busy for minutes.
            if len(exif) > MAX_EXIF_SEGMENTS:
                raise ValueError("too many Exif segments")
        if marker == _TABLE:
            tables += len(segment)
        if marker == _APP13:
            notes += segment.count(_PHOTOSHOP_NOTE)
        if marker == _APP2 and segment.startswith(_MPF):
            check_directory(segment[len(_MPF) :])
    if tables > MAX_TABLE_BYTES or notes > MAX_PHOTOSHOP_NOTES:
        raise ValueError("too many JPEG tables or notes")
    check_directory(b"".join(exif))
    _check_scans(data, min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels))
    return may_be_turned


def scan_markers(data: bytes) -> NDArray[np.intp]:
    """Where the bytes FF DA are in a file; in a third of the time of bytes.find()."""
    values = np.frombuffer(data, np.uint8)
    found = []
    for start in range(0, len(values), PART_BYTES):
        part = values[start : start + PART_BYTES + 1]
        found.append(start + np.flatnonzero((part[:-1] == 0xFF) & (part[1:] == _SCAN)))
    return np.concatenate(found)


def _has_one_scan(data: bytes) -> bool:
    """Whether libjpeg ends with the first scan: sequential, with every component of the frame.

    Where segments do not follow one another without a gap, decoders may disagree: that is a no.
    """
    position, components = 2, 0
    for _ in range(_MAX_PLAIN_SEGMENTS):
        head = data[position : position + 10]  # FF, marker, length, and of a frame 5 bytes, count
        if len(head) < 10 or head[0] != 0xFF or head[1] in _BARE or head[1] == 0xFF:
            return False
        marker, length = head[1], int.from_bytes(head[2:4], "big")
        if marker == _SCAN:
            return 0 < components == head[4]
        if marker in _FRAMES:
            if marker not in _SEQUENTIAL or components:
                return False
            components = head[9]
        position += 2 + length
    return False


def _check_scans(data: bytes, most: int) -> None:
    """Count scans up to the end of the image as libjpeg does. Raises ValueError for too many.

    What follows the image is no part of it: some cameras append a video.
    """
    if _has_one_scan(data) or len(scan_markers(data)) <= most:
        return  # libjpeg decodes no more scans than that, wherever the image ends
    scans, position = 0, 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or found[1][0] == _END:
            return
        position = found.end()
        if found[1][0] == _SCAN:
            scans += 1
            if scans > most:
                raise ValueError("too many JPEG scans")
        if found[1][0] not in _BARE and position + 2 <= len(data):
            position += struct.unpack_from(">H", data, position)[0]
    raise ValueError("too many JPEG segments")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with their segments up to the first scan; ValueError where there are too many."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        found = data.find(0xFF, position, position + MAX_JUNK_BYTES)
        if found < 0 and position + MAX_JUNK_BYTES < len(data):
            raise ValueError("too much between JPEG segments")
        marker = data[found + 1] if 0 <= found < len(data) - 1 else _SCAN
        if marker == _SCAN:
            return
        if marker == 0xFF:  # padding
            position = found + 1
        elif marker in _BARE:
            position = found + 2
        else:
            (length,) = struct.unpack_from(">H", data, found + 2)
            yield marker, data[found + 4 : found + 2 + length]
            position = found + 2 + length
    raise ValueError("too many JPEG segments")
