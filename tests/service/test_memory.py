from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

# Each photo is freed while its reply is held. glibc's own limit grows with the first one freed.
HOLD_AND_FREE = """
import sys
from pathlib import Path
import numpy as np
from service.memory import keep_resident_memory_low

if sys.argv[1] == "low":
    keep_resident_memory_low()
np.ones(30_000_000, np.uint8)  # freed at once
held = []
for _ in range(20):
    photo, reply = np.ones(10_000_000, np.uint8), np.ones(100_000, np.uint8)
    held.append((photo, reply))
held = [reply for _, reply in held]
del photo
print(Path('/proc/self/statm').read_text().split()[1])
"""


def resident(kind: str) -> int:
    command = [sys.executable, "-c", HOLD_AND_FREE, kind]
    pages = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return pages * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is set up")
def test_freed_photos_leave_the_process_though_later_replies_are_kept() -> None:
    assert resident("low") < resident("usual") - 100_000_000
