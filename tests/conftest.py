"""Fixtures for every test: real photos, the real networks, and a real server on loopback."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import hypothesis
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from service.pipeline import Networks, load_networks
from service.settings import ENV_PREFIX, Settings, load_settings
from tests.service.serving import RunningServer, Serve, running

# Speed is no matter of tests: a slow machine must not fail them.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def portrait() -> NDArray[np.uint8]:
    """[512,512,3] uint8 RGB: a NASA portrait with one frontal, smiling face."""
    photo: NDArray[np.uint8] = skimage.data.astronaut()
    return photo


@pytest.fixture(scope="session")
def portrait_jpeg(portrait: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(portrait).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def networks() -> Networks:
    return load_networks(Settings())


@pytest.fixture(scope="session")
def server(networks: Networks) -> Iterator[RunningServer]:
    """The service as it is out of the box; ready."""
    with running(Settings(), networks) as running_server:
        yield running_server


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


@pytest.fixture
def serve(networks: Networks) -> Iterator[Serve]:
    """Starts further servers: serve(networks_of_your_own, setting=value, ...)."""
    with ExitStack() as stack:

        def start(own: Networks | None = None, **settings: object) -> RunningServer:
            chosen = load_settings(**settings)
            return stack.enter_context(running(chosen, own or networks))

        yield start
