"""Names that mean no file: devices without end, pipes that nobody writes into."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from service.errors import ImageFileError, PayloadTooLargeError
from service.files import read_file

ZERO = Path("/dev/zero")
HANDED_OVER = Path("/dev/fd")
MOST = 1000
needs_devices = pytest.mark.skipif(not ZERO.exists(), reason="needs /dev/zero")
needs_pipes = pytest.mark.skipif(not HANDED_OVER.exists(), reason="needs named pipes and /dev/fd")


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    for size in (0, MOST):
        path.write_bytes(bytes(size))
        assert read_file(path, MOST) == bytes(size)
    path.write_bytes(bytes(MOST + 1))
    with pytest.raises(PayloadTooLargeError, match="has 1001 bytes; at most 1000 are taken"):
        read_file(path, MOST)


@needs_devices
def test_a_device_is_refused_under_any_name(tmp_path: Path) -> None:
    link = tmp_path / "zero.jpg"
    link.symlink_to(ZERO)
    for path in (ZERO, link):
        with pytest.raises(ImageFileError) as caught:
            read_file(path, MOST)
        assert caught.value.detail == f"{path}: It is a device or a named pipe, and no file."


@needs_pipes
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    with pytest.raises(ImageFileError, match="is a device or a named pipe, and no file"):
        read_file(path, MOST)


@needs_pipes
@pytest.mark.parametrize("size", [MOST, MOST + 1])
def test_a_pipe_that_a_shell_hands_over_is_read_up_to_its_bound(size: int) -> None:
    """As `<(command)` is; what comes late is waited for."""
    reading, writing = os.pipe()

    def write() -> None:
        os.write(writing, bytes(size))
        os.close(writing)

    writer = threading.Timer(0.1, write)
    writer.start()
    path = HANDED_OVER / str(reading)
    if size <= MOST:
        assert read_file(path, MOST) == bytes(size)
    else:
        with pytest.raises(PayloadTooLargeError, match="more bytes than the 1000 taken"):
            read_file(path, MOST)
    writer.join()
    os.close(reading)


def test_other_names_that_mean_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("", "none", "loop", "x" * 5000):
        with pytest.raises(ImageFileError, match=r": The file cannot be read \(.+\)\."):
            read_file(tmp_path / name, MOST)
    with pytest.raises(ImageFileError, match="No name of a file holds NUL"):
        read_file(tmp_path / "x\0.jpg", MOST)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs sockets that are files")
def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("photo.jpg")
        with pytest.raises(ImageFileError, match="cannot be read"):
            read_file(Path("photo.jpg"), MOST)
