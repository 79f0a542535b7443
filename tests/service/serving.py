"""A real uvicorn on loopback in a thread, and the one shape every error has."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import httpx

from service.app import create_app
from service.errors import StartupError
from service.pipeline import Networks
from service.problems import MEDIA_TYPE, TYPE_PREFIX
from service.server import Server, listen, make_server, url_of
from service.settings import Settings
from service.state import LoadNetworks, ServiceState

# Generous: it only bounds how long a broken test hangs.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class RunningServer:
    url: str
    state: ServiceState
    uvicorn: Server
    thread: threading.Thread

    def client(self) -> httpx.Client:
        # trust_env: a proxy of the machine has no business here.
        return httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def terminate(self) -> None:
        """What SIGTERM does."""
        self.uvicorn.handle_exit(signal.SIGTERM, None)


class Serve(Protocol):
    def __call__(self, own: Networks | None = None, **settings: object) -> RunningServer: ...


@contextmanager
def starting(
    settings: Settings,
    load: LoadNetworks | None,
    on_started: Callable[[StartupError | None], None],
) -> Iterator[RunningServer]:
    """A server that accepts connections; it may not be ready yet. Without `load`, with engines."""
    app = create_app(settings, load=load, on_started=on_started)
    server = make_server(app, settings)
    with listen("127.0.0.1", 0) as listener:
        url = url_of(listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            yield RunningServer(url, app.state.service, server, thread)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "the server does not stop"


@contextmanager
def running(settings: Settings, networks: Networks | None = None) -> Iterator[RunningServer]:
    """A server that is ready, with these networks in its process or with engines."""
    failures: list[StartupError] = []
    started = threading.Event()

    def on_started(failure: StartupError | None) -> None:
        failures.extend([failure] if failure else [])
        started.set()

    load = None if networks is None else lambda _: networks
    with starting(settings, load, on_started) as server:
        assert started.wait(PATIENCE_SECONDS), "the server does not become ready"
        if failures:
            raise failures[0]
        yield server


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def assert_problem(response: httpx.Response, status: int, slug: str) -> str:
    """Every error has this shape. Returns the detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = response.json()
    assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert problem["type"] == TYPE_PREFIX + slug
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    for secret in ("Traceback", ".py", "site-packages", "onnxruntime"):
        assert secret not in response.text
    detail: str = problem["detail"]
    return detail
