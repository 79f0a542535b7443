"""Opening what others have named, which may be no file: a device without end, a pipe that waits."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from service.errors import ImageFileError, PayloadTooLargeError

# What a shell hands over, by `command | ...` and `<(command)`: a pipe that somebody writes into.
HANDED_OVER = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file at `path`, to be read from its start; neither opening nor reading it waits.

    Raises ImageFileError where it cannot be read, and for devices and pipes; a pipe that a shell
    has handed over is taken, and waited for.
    """
    if "\0" in str(path):
        raise ImageFileError(f"{path}: No name of a file holds NUL; names are one a line.")
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(mode) and HANDED_OVER.fullmatch(str(path)):
                os.set_blocking(file.fileno(), True)
            elif not stat.S_ISREG(mode):
                raise ImageFileError(f"{path}: It is a device or a named pipe, and no file.")
            yield file
    except OSError as error:
        raise ImageFileError(f"{path}: The file cannot be read ({error.strerror}).") from error


def _open_at_once(path: str, flags: int) -> int:
    # Windows has no such pipes, and no such flag.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of `path`. Raises ImageFileError, or PayloadTooLargeError before it is read.

    Both begin with the path: where several files are read, it says which one it was.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise PayloadTooLargeError(
                f"{path}: The file has {size} bytes; at most {max_bytes} are taken."
            )
        # A pipe has no size; None is what would have to be waited for.
        content = file.read(max_bytes + 1) or b""
    if len(content) > max_bytes:
        raise PayloadTooLargeError(f"{path}: The file has more bytes than the {max_bytes} taken.")
    return content
