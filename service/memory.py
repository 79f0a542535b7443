"""How glibc hands memory back: photos come in all sizes, and what they took must not stay."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

# mallopt's numbers, from malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
# Blocks from this size on go back to the system when they are freed. By itself glibc raises the
# limit to the largest block it has seen freed, up to 32 MB: most photos would then stay.
LARGE_BLOCK_BYTES = 4 * 1024 * 1024
# Up to so much may stay free at the end of a heap. With 128 kB, glibc's own limit, every photo
# makes it give back memory that the next one asks for again.
HEAP_RESERVE_BYTES = 16 * 1024 * 1024
# Heaps that threads keep apart; each of them keeps what was once needed in it.
ARENAS = 2


def resident_bytes() -> int:
    """Resident memory of this process; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def keep_resident_memory_low() -> None:
    """Set glibc's allocator up for this process; elsewhere nothing is done."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(TRIM_THRESHOLD, HEAP_RESERVE_BYTES)
        libc.mallopt(ARENA_MAX, ARENAS)
