"""A browser for the page's tests; it starts where a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.chromium import Visit, chromium, visiting
from tests.service.serving import RunningServer

with suppress(ImportError):  # the fixture `browser` says so
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser(
    portrait: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium, with the portrait before its webcam."""
    film = tmp_path_factory.mktemp("webcam") / "portrait.y4m"
    height, width = portrait.shape[:2]
    frame = cv2.cvtColor(portrait, cv2.COLOR_RGB2YUV_I420).tobytes()
    head = f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420\n".encode()
    film.write_bytes(head + 2 * (b"FRAME\n" + frame))
    with chromium(film) as started:
        yield started


@pytest.fixture
def visit(browser: Browser, server: RunningServer) -> Iterator[Visit]:
    with visiting(browser, server.url) as opened:
        yield opened
