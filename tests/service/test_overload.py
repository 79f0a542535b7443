from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np
import pytest

from service.expression import ExpressionModel
from service.faces.detector import FaceDetector, Placement, RawDetections, plan_rounds
from service.pipeline import MAX_LOOKS, Networks
from service.runtime import SessionSettings, load_model
from service.settings import Settings
from tests.service.serving import (
    PATIENCE_SECONDS,
    RunningServer,
    Serve,
    assert_problem,
    wait_until,
)

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


@pytest.fixture
def held() -> Iterator[HeldDetector]:
    detector = HeldDetector(Settings())
    yield detector
    detector.gate.set()


@pytest.fixture
def serve_held(
    serve: Serve, networks: Networks, held: HeldDetector
) -> Callable[..., RunningServer]:
    """serve_held(setting=value): one worker a network, so that a held batch holds all."""

    def start(**settings: object) -> RunningServer:
        return serve(Networks(held, networks.classifier), inference_workers=1, **settings)

    return start


def grey_photo(brightness: int) -> bytes:
    _, data = cv2.imencode(".png", np.full((64, 64, 3), brightness, np.uint8))
    return data.tobytes()


def queued_images(server: RunningServer) -> float | None:
    registry = server.state.metrics.registry
    return registry.get_sample_value("lan_fer_queued_items", {"network": "detector"})


class Crowd:
    """Clients that post at the same time."""

    def __init__(self, server: RunningServer) -> None:
        self._pool = ThreadPoolExecutor(32)
        self._url = server.url

    def post(self, photo: bytes) -> Callable[[], httpx.Response]:
        future = self._pool.submit(
            httpx.post,
            f"{self._url}/predict",
            content=photo,
            headers=JPEG,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )
        return lambda: future.result(PATIENCE_SECONDS)


def raw_request(server: RunningServer, head: Sequence[str], body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(server.address, timeout=PATIENCE_SECONDS)
    lines = ["POST /predict HTTP/1.1", "Host: here", "Content-Type: image/png", *head, "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def test_too_many_images_are_refused_before_their_body_is_read(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(max_in_flight_images=1)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    # The body is announced and never sent, so it cannot have been read.
    with raw_request(server, ["Content-Length: 1000", "Expect: 100-continue"]) as connection:
        reply = connection.recv(65536).decode()
    assert reply.startswith("HTTP/1.1 429 ")
    assert "retry-after: 1\r\n" in reply
    assert "problem-type:lan-fer:overloaded" in reply
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
        response = client.post("/predict", content=grey_photo(2), headers=JPEG)
        assert_problem(response, 429, "overloaded")
        held.gate.set()
        assert first().status_code == 200
        assert client.post("/predict", content=grey_photo(3), headers=JPEG).status_code == 200


def test_refused_requests_give_their_permit_back(serve: Serve, portrait_jpeg: bytes) -> None:
    server = serve(max_in_flight_images=1)
    with server.client() as client:
        for body in (b"no image", portrait_jpeg[:9999], b""):
            assert client.post("/predict", content=body, headers=JPEG).status_code >= 400
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
    assert server.state.lifecycle.in_flight == 0


def test_late_answer_is_504_and_its_work_is_dropped(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(deadline_ms=200)
    crowd = Crowd(server)
    running = crowd.post(grey_photo(10))
    held.wait_until_entered()
    queued = crowd.post(grey_photo(20))
    for response in (running(), queued()):
        assert "200 ms" in assert_problem(response, 504, "deadline-exceeded")
    held.gate.set()
    wait_until(lambda: server.state.lifecycle.in_flight == 0)
    with server.client() as client:
        client.post("/predict", content=grey_photo(30), headers=JPEG)
    assert [20] not in held.brightness
    assert [30] in held.brightness


def test_work_of_a_client_that_hangs_up_is_dropped(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held()
    first = Crowd(server).post(grey_photo(10))
    held.wait_until_entered()
    photo = grey_photo(20)
    with raw_request(server, [f"Content-Length: {len(photo)}"], photo):
        wait_until(lambda: queued_images(server) == 1)
    wait_until(lambda: server.state.lifecycle.in_flight == 1)
    held.gate.set()
    assert first().status_code == 200
    with server.client() as client:
        assert client.post("/predict", content=grey_photo(30), headers=JPEG).status_code == 200
        assert 'status="499"' in client.get("/metrics").text
    assert [20] not in held.brightness


def test_client_that_hangs_up_in_its_body_leaves_nothing_behind(serve: Serve) -> None:
    server = serve(max_in_flight_images=1)
    with raw_request(server, ["Content-Length: 1000"], b"x" * 10):
        wait_until(lambda: server.state.lifecycle.in_flight == 1)
    wait_until(lambda: server.state.lifecycle.in_flight == 0)


def test_network_that_breaks_fails_its_batch_alone(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held()
    crowd = Crowd(server)
    first = crowd.post(grey_photo(10))
    held.wait_until_entered()
    held.breaks = True
    held.gate.set()
    assert "secret" not in assert_problem(first(), 500, "inference-failed")
    held.breaks = False
    assert crowd.post(grey_photo(20))().status_code == 200
    with server.client() as client:
        failures = 'lan_fer_batch_failures_total{network="detector"} 1.0'
        assert failures in client.get("/metrics").text


def test_photos_that_wait_share_a_batch(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(max_detector_batch=8)
    crowd = Crowd(server)
    first = crowd.post(grey_photo(10))
    held.wait_until_entered()
    rest = [crowd.post(grey_photo(brightness)) for brightness in (20, 30, 40)]
    wait_until(lambda: server.state.lifecycle.in_flight == 4)
    wait_until(lambda: queued_images(server) == 3)
    held.gate.set()
    assert [answer().status_code for answer in (first, *rest)] == [200] * 4
    assert sorted(held.brightness[1]) == [20, 30, 40]


def test_stop_answers_what_is_in_flight(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held()
    crowd = Crowd(server)
    answers = [crowd.post(grey_photo(10 * n)) for n in range(1, 9)]
    wait_until(lambda: server.state.lifecycle.in_flight == len(answers))
    held.wait_until_entered()
    server.terminate()
    wait_until(lambda: server.state.metrics.registry.get_sample_value("lan_fer_ready") == 0)
    held.gate.set()
    assert [answer().status_code for answer in answers] == [200] * len(answers)
    server.thread.join(PATIENCE_SECONDS)
    assert not server.thread.is_alive()


def test_classifier_that_breaks_is_a_problem_too(
    serve: Serve, networks: Networks, portrait_jpeg: bytes
) -> None:
    class Broken(ExpressionModel):
        def infer(self, crops: object) -> list[object]:  # type: ignore[override]
            raise ZeroDivisionError("secret")

        def warm_up(self) -> None:
            pass

    settings = Settings()
    model = Broken.load(settings.model_path, SessionSettings("cpu"))
    with serve(Networks(networks.detector, model)).client() as client:
        response = client.post("/predict", content=portrait_jpeg, headers=JPEG)
        assert "secret" not in assert_problem(response, 500, "inference-failed")
        # Nothing to classify, nothing to fail.
        assert client.post("/predict", content=grey_photo(9), headers=JPEG).status_code == 200


def test_every_look_of_every_admitted_image_fits_the_queue() -> None:
    sides = (1, 100, 320, 640, 641, 1280, 1281, 8000)
    looks = [len(turn.looks) for h in sides for w in sides for turn in plan_rounds(h, w)]
    assert max(looks) <= MAX_LOOKS
