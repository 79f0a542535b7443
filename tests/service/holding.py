"""A real detector that can be held at a gate, and clients for tests of overload and faults."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np

from service.faces.detector import FaceDetector, Placement, RawDetections
from service.runtime import SessionSettings, load_model
from service.settings import Settings
from tests.service.serving import PATIENCE_SECONDS, RunningServer

JPEG = {"content-type": "image/jpeg"}


class HeldDetector(FaceDetector):
    """The real detector, which waits at a gate before each run and may be told to break."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(load_model(settings.detector_path, SessionSettings("cpu")))
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.brightness: list[list[int]] = []
        """Of each item of each batch: tells which photos reached the network."""
        self.breaks = False

    def infer(self, placements: Sequence[Placement]) -> list[RawDetections]:
        self.brightness.append([int(p.pixels[0, 0, 0]) for p in placements])
        self.entered.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        if self.breaks:
            raise ZeroDivisionError("secret")
        return super().infer(placements)

    def warm_up(self) -> None:
        """A gate that is shut must not keep the server from starting."""

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_SECONDS)


def grey_photo(brightness: int, side: int = 64) -> bytes:
    _, data = cv2.imencode(".png", np.full((side, side, 3), brightness, np.uint8))
    return data.tobytes()


def queued_images(server: RunningServer) -> float | None:
    """Those that wait for a batch of the detector."""
    registry = server.state.metrics.registry
    return registry.get_sample_value("lan_fer_queued_items", {"network": "detector"})


class Crowd:
    """Clients that post at the same time."""

    def __init__(self, server: RunningServer, clients: int = 32) -> None:
        self._pool = ThreadPoolExecutor(clients)
        self._url = server.url

    def post(self, photo: bytes, **headers: str) -> Callable[[], httpx.Response]:
        future = self._pool.submit(
            httpx.post,
            f"{self._url}/predict",
            content=photo,
            headers={**JPEG, **headers},
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )
        return lambda: future.result(PATIENCE_SECONDS)


def raw_request(
    server: RunningServer,
    head: Sequence[str],
    body: bytes = b"",
    *,
    receive_bytes: int | None = None,
) -> socket.socket:
    """A connection on which POST /predict with these header lines and bytes has been sent."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_SECONDS)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(server.address)
    lines = ["POST /predict HTTP/1.1", "Host: here", "Content-Type: image/png", *head, "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def read_all(connection: socket.socket) -> str:
    """Everything until the server ends the connection; a reset is an error."""
    pieces = []
    while piece := connection.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces).decode("latin-1")
