"""How a TIFF file stores its pixels, as both who read it have it: Pillow and libtiff."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.image_directories import (
    MAX_FRACTIONS,
    MAX_OVERLAP_BYTES,
    Directory,
    Entry,
    bytes_of,
    check_named,
)
from service.jpeg_headers import MAX_SCANNED_PIXELS, scan_markers

MAX_STRIPS = 70_000
# Numbers in an entry, each of which Pillow may make an object of: those of a 16-bit colour table.
MAX_VALUES = 3 * 65_536
# Of Exif, colour profiles and XMP, which decoders copy several times; also of PNG and WebP.
MAX_METADATA_BYTES = 8 * 1024 * 1024

_STRIP_TAGS = (273, 279, 324, 325)  # offsets and lengths of strips and of tiles
_OFFSET_TAGS, _LENGTH_TAGS = (273, 324), (279, 325)
_WIDTH, _HEIGHT, _COMPRESSION, _ROWS = 256, 257, 259, 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# One number each, of how the pixels are stored; with them the photometric interpretation, the order
# of bits, samples, planes and the predictor.
_NUMBERS = frozenset((256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323))
_KINDS, _KINDS_OF_BIG = (3, 4), (3, 4, 16)
_UNCOMPRESSED, _JPEG = 1, (6, 7)
# Below it are those that say how the pixels are stored; documents and profiles are above.
_FIRST_FOREIGN_TAG = 700
_METADATA = (700, 34675)  # XMP, colour profile: what Pillow reads unasked
_BYTES, _TEXT, _FRACTIONS = (1, 2, 7), 2, (5, 10)


def check_tiff(data: bytes) -> None:
    """Hold a TIFF file to what Pillow and libtiff, which decodes it, both read in it the same way.

    Either takes entries that the other passes over: of a kind of number that it does not know, or
    of a tag that it has seen before. Raises ValueError.
    """
    directory = Directory(data)
    kinds = _KINDS_OF_BIG if directory.is_big else _KINDS
    storage: dict[int, Entry] = {}
    named = 0
    for entry in directory.entries:
        tag, kind, length, _ = entry
        named += length * bytes_of(kind)
        is_array = tag in _STRIP_TAGS
        if length > (MAX_STRIPS if is_array else _most_values(tag, kind)):
            raise ValueError("too many values of a TIFF entry")
        if not is_array and tag not in _NUMBERS:
            continue
        if tag in storage:
            raise ValueError("a TIFF tag that occurs twice")
        if kind not in kinds or not (is_array or length == 1):
            raise ValueError("a TIFF entry of an unusual kind")
        storage[tag] = entry
    check_named(named, len(data))
    _check_strips(data, directory, storage)


def _check_strips(data: bytes, directory: Directory, storage: dict[int, Entry]) -> None:
    """Strips or tiles that are compressed may not share their bytes, nor be JPEGs of many scans."""

    def number(tag: int, default: float) -> float:
        entry = storage.get(tag)
        return float(directory.numbers(entry).max(initial=0)) if entry is not None else default

    compression = number(_COMPRESSION, _UNCOMPRESSED)
    if compression == _UNCOMPRESSED:
        return  # Pillow reads it, and no more of it than the picture has
    for starts, lengths in zip(_OFFSET_TAGS, _LENGTH_TAGS, strict=True):
        if lengths not in storage:
            continue
        sizes = directory.numbers(storage[lengths])
        if np.abs(sizes).sum() > 2 * len(data) + MAX_OVERLAP_BYTES:
            raise ValueError("TIFF strips or tiles that share their bytes")
        if compression not in _JPEG or starts not in storage:
            continue
        offsets = directory.numbers(storage[starts])
        count = min(len(offsets), len(sizes))
        scans = _scans_within(data, offsets[:count], offsets[:count] + sizes[:count])
        width, height = number(_WIDTH, 0), number(_HEIGHT, 0)
        pixels = width * min(height, number(_ROWS, height))
        tile = number(_TILE_WIDTH, 0) * number(_TILE_HEIGHT, 0)
        if scans * max(pixels if starts == _OFFSET_TAGS[0] else 0, tile) > MAX_SCANNED_PIXELS:
            raise ValueError("too many JPEG scans")


def _scans_within(data: bytes, starts: NDArray[np.float64], ends: NDArray[np.float64]) -> int:
    """How many scans of a JPEG begin in these parts of a file, all together."""
    markers = scan_markers(data)
    return int((np.searchsorted(markers, ends) - np.searchsorted(markers, starts)).sum())


def _most_values(tag: int, kind: int) -> float:
    if kind in _FRACTIONS:
        return MAX_FRACTIONS
    if kind in (*_BYTES, _TEXT):
        if tag in _METADATA:
            return MAX_METADATA_BYTES
        if kind == _TEXT or tag >= _FIRST_FOREIGN_TAG:
            return math.inf
    return MAX_VALUES


def directories(data: bytes, most: int) -> Iterator[int]:
    """Offsets of the image file directories, in order; ends at a loop, a cut or after `most`."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    count_format, entry_bytes, offset_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    count_bytes = struct.calcsize(f"={count_format}")
    (offset,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < most:
        seen.add(offset)
        yield offset
        try:
            (entries,) = struct.unpack_from(order + count_format, data, offset)
            after_entries = offset + count_bytes + entries * entry_bytes
            (offset,) = struct.unpack_from(order + offset_format, data, after_entries)
        except struct.error:  # cut off: the directories before it still count
            return
