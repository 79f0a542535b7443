"""The directory of a TIFF file or of Exif data: its entries, at a bounded cost."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# By how much the entries of a directory may share the bytes they name, and a TIFF's strips theirs.
MAX_OVERLAP_BYTES = 64 * 1024
# Numbers of a kind that Pillow makes an object of each, with a fraction's two parts in it.
MAX_FRACTIONS = 1024

_EXIF_NUMBERS = (0x112, 0x11A, 0x128)  # orientation, resolution and its unit
_TYPE_BYTES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), strict=True))
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4"}
_INTEGERS |= {16: "u8", 17: "i8", 18: "u8"}
_MAX_ENTRIES = 65_535

# Tag, kind of number, how many, and the numbers themselves where they fit, else their offset.
Entry = tuple[int, int, int, bytes]


class Directory:
    """The first directory of a TIFF file, or of Exif data. ValueError for too many entries.

    Data that is no TIFF structure, or is cut, has no entries: that is left to Pillow.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self.is_big = data[2:3] == b"+"  # as Pillow tells
        self.entries: Iterator[Entry] = iter(())
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
        whole = min(entries, max(0, len(data) - first) // entry.size, _MAX_ENTRIES + 1)
        if whole > _MAX_ENTRIES:
            raise ValueError("too many TIFF entries")
        self.entries = entry.iter_unpack(data[first : first + whole * entry.size])

    def numbers(self, entry: Entry) -> NDArray[np.float64]:
        """The integers of an entry, those that there are."""
        _, kind, length, value = entry
        numbers = np.dtype(self._order + _INTEGERS.get(kind, "u1"))
        if length * numbers.itemsize > len(value):
            offset = int.from_bytes(value, "little" if self._order == "<" else "big")
            value = self._data[offset : offset + length * numbers.itemsize]
        count = min(length, len(value) // numbers.itemsize)
        return np.frombuffer(value, numbers, count).astype(np.float64)


def bytes_of(kind: int) -> int:
    """Of one number of this kind; 0 where Pillow does not know it."""
    return _TYPE_BYTES.get(kind, 0)


def check_directory(data: bytes) -> None:
    """Hold the first directory of Exif data, or its like, to the bytes that there are.

    Pillow keeps a copy of what each entry names. Raises ValueError.
    """
    named = 0
    for tag, kind, length, _ in Directory(data).entries:
        named += length * bytes_of(kind)
        # Pillow makes numbers of no others.
        if tag in _EXIF_NUMBERS and length > MAX_FRACTIONS:
            raise ValueError("too many values of an Exif entry")
    check_named(named, len(data))


def check_named(named: int, there: int) -> None:
    """Raise ValueError where entries name that many bytes of those that there are."""
    if named > 2 * there + MAX_OVERLAP_BYTES:
        raise ValueError("TIFF entries that name more bytes than there are")
