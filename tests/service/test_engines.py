"""Engines, the processes that read photos: they answer as the server itself would, and may end."""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import engine_link, engines, errors
from service.budgets import LanePixels
from service.engine import _Lanes
from service.engines import Engines
from service.errors import ProblemError, StartupError, UnavailableError
from service.messages import BlockingMessages, Drop, Messages, Read, Ready
from service.observing import Journal
from service.pipeline import USUAL, Pipeline, load_networks
from service.replies import keep_faces
from service.settings import load_settings
from tests.service.serving import (
    PATIENCE_SECONDS,
    RunningServer,
    assert_problem,
    running,
    starting,
    wait_until,
)

JPEG = {"Content-Type": "image/jpeg"}
CHANGING = {"request_id", "timings_ms"}
ServeEngines = Callable[..., RunningServer]

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows gives a process no end of a socket pair"
)


@pytest.fixture(scope="module")
def engined() -> Iterator[RunningServer]:
    """The service as `serve` starts it: one engine."""
    with running(load_settings()) as running_server:
        yield running_server


@pytest.fixture
def serve_engines() -> Iterator[ServeEngines]:
    with ExitStack() as stack:

        def start(**settings: object) -> RunningServer:
            return stack.enter_context(running(load_settings(**settings)))

        yield start


def engines_of(server: RunningServer) -> list[psutil.Process]:
    """The processes of its engines, in their order."""
    reader = server.state.reader
    assert isinstance(reader, Engines)
    processes = [engine.process for engine in reader._engines]
    return [psutil.Process(process.pid) for process in processes if process is not None]


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """It stands still meanwhile."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"no {name} with {labels}")


def steady(document: Any) -> Any:  # noqa: ANN401 - JSON
    """Without what differs from request to request."""
    if isinstance(document, dict):
        return {k: steady(v) for k, v in document.items() if k not in CHANGING}
    return [steady(v) for v in document] if isinstance(document, list) else document


# --- the same answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["", "?explain=evidence&class=anger&heatmap=overlay", "?min_score=0.99", "?search=thorough"],
)
def test_answers_are_those_of_a_server_without_engines(
    engined: RunningServer, client: httpx.Client, portrait_jpeg: bytes, query: str
) -> None:
    with engined.client() as other:
        one, same = (
            c.post(f"/predict{query}", content=portrait_jpeg, headers=JPEG) for c in (client, other)
        )
        assert one.status_code == same.status_code == 200
        assert steady(one.json()) == steady(same.json())


def test_other_routes_answer_as_without_engines(
    engined: RunningServer, client: httpx.Client, portrait_jpeg: bytes
) -> None:
    photo = ("file", ("a.jpg", portrait_jpeg, "image/jpeg"))
    broken = ("file", ("b.jpg", b"no image", "image/jpeg"))
    drawn = JPEG | {"Accept": "image/png"}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    asked = {"inputs": [tensor | {"data": [base64.b64encode(portrait_jpeg).decode()]}]}
    with engined.client() as other:
        asks: list[Callable[[httpx.Client], Any]] = [
            lambda c: steady(c.post("/predict/batch", files=[photo, broken]).json()),
            lambda c: c.post("/predict", content=portrait_jpeg, headers=drawn).content,
            lambda c: c.post("/v2/models/lan-fer/infer", json=asked).json(),
            lambda c: c.get("/v2/models/lan-fer").json(),
            lambda c: c.get("/model").json(),
        ]
        for ask in asks:
            assert ask(client) == ask(other)


def test_errors_keep_their_status(engined: RunningServer, portrait_jpeg: bytes) -> None:
    with engined.client() as client:
        broken = client.post("/predict", content=portrait_jpeg[:2000], headers=JPEG)
        assert "truncated" in assert_problem(broken, 422, "invalid-image")
        unknown = client.post("/predict", content=b"no image", headers=JPEG)
        assert_problem(unknown, 415, "unsupported-media-type")


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(other for below in kind.__subclasses__() for other in _subclasses(below))]


@pytest.mark.parametrize(
    "kind", [k for k in _subclasses(errors.ServiceError) if k is not ProblemError]
)
def test_every_error_can_come_from_an_engine(kind: type[errors.ServiceError]) -> None:
    error = kind("what is wrong")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert vars(again) == vars(error)


def test_error_keeps_what_it_says_beside_the_detail() -> None:
    error = pickle.loads(pickle.dumps(UnavailableError("x", retry_after_seconds=7)))
    assert error.headers == {"Retry-After": "7"}


def test_metrics_hear_of_an_engine_within_seconds(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines()
    with server.client() as client:
        for _ in range(3):
            assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
        wait_until(lambda: metric(client, "lan_fer_face_confidence_count") == 3)
        assert metric(client, "lan_fer_batch_size_count", network="classifier") == 3
        assert metric(client, "lan_fer_stage_duration_seconds_count", stage="decode") == 3
        assert metric(client, "lan_fer_engines") == 1
        wait_until(lambda: metric(client, "lan_fer_engine_cpu_seconds_total") > 0)
        assert metric(client, "lan_fer_engine_resident_memory_bytes") > 20_000_000


# --- nobody waits in vain ------------------------------------------------------------------------


def test_late_photo_gets_504_and_holds_nobody_up(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines()
    with server.client() as client, stopped(engines_of(server)[0]):
        soon = JPEG | {"X-Request-Timeout-Ms": "100"}
        for _ in range(5):  # more than there are lanes: some wait in the server
            late = client.post("/predict", content=portrait_jpeg, headers=soon)
            assert_problem(late, 504, "deadline-exceeded")
        assert server.state.lifecycle.in_flight == 0
    with server.client() as client:
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
        assert server.state.load.waiting_photos == 0


def test_photos_larger_than_the_budget_are_read_one_by_one(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines(max_in_flight_pixels=4096)
    with server.client() as client, ThreadPoolExecutor(6) as pool:
        posts = [
            pool.submit(client.post, "/predict", content=portrait_jpeg, headers=JPEG)
            for _ in range(12)
        ]
        assert [post.result().status_code for post in posts] == [200] * 12


def test_killed_engine_is_replaced_and_every_photo_answered(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines(image_workers=2)
    [before] = engines_of(server)
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        before.suspend()  # so that all of them are in its hands, or wait for it
        posts = [
            pool.submit(client.post, "/predict", content=portrait_jpeg, headers=JPEG)
            for _ in range(8)
        ]
        wait_until(lambda: server.state.lifecycle.in_flight == 8)
        before.kill()
        wait_until(lambda: server.state.lifecycle.in_flight == 6)
        refused = client.post("/predict", content=portrait_jpeg, headers=JPEG)
        assert "started again" in assert_problem(refused, 503, "unavailable")
        assert_problem(client.get("/health/ready"), 503, "unavailable")
        # Those that its two lanes had are lost with it, the others wait for the next engine.
        replies = sorted((post.result() for post in posts), key=lambda reply: reply.status_code)
        assert [reply.status_code for reply in replies] == [200] * 6 + [503] * 2
        for reply in replies[6:]:
            assert "ended" in assert_problem(reply, 503, "unavailable")
            assert reply.headers["retry-after"] == "2"
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
        assert metric(client, "lan_fer_engine_restarts_total") == 1
    assert engines_of(server) != [before]


def test_one_of_two_engines_may_end_unnoticed(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines(engines=2)
    first, _ = engines_of(server)
    first.kill()
    with server.client() as client:
        wait_until(lambda: metric(client, "lan_fer_engine_restarts_total") == 1)
        for _ in range(4):
            assert client.get("/health/ready").status_code == 200
            assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
        wait_until(lambda: metric(client, "lan_fer_engines") == 2)


def test_engine_that_hangs_is_replaced(serve_engines: ServeEngines, portrait_jpeg: bytes) -> None:
    server = serve_engines(stage_limit_ms=2000)
    [before] = engines_of(server)
    with server.client() as client:
        before.suspend()  # it says nothing any more
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
        assert metric(client, "lan_fer_engine_restarts_total") == 1
    assert engines_of(server) != [before]


def test_engine_ends_with_its_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        wait_until(lambda: b"ready" in (tmp_path / "log").read_bytes())
        [engine] = psutil.Process(process.pid).children()
    finally:
        process.kill()
        process.wait()
    engine.wait(PATIENCE_SECONDS)


def test_signals_of_a_terminal_leave_the_engine_to_the_server(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines()
    [engine] = engines_of(server)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine.pid, number)
    time.sleep(0.1)
    with server.client() as client:
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200


@pytest.mark.parametrize("count", [1, 2])
def test_engine_that_cannot_start_says_why(tmp_path: Path, count: int) -> None:
    told = threading.Event()
    failures: list[StartupError | None] = []

    def on_started(failure: StartupError | None) -> None:
        failures.append(failure)
        told.set()

    settings = load_settings(model_path=tmp_path / "none.onnx", engines=count)
    with starting(settings, None, on_started):
        assert told.wait(PATIENCE_SECONDS)
    [failure] = failures
    assert isinstance(failure, errors.ModelFileError)
    assert "none.onnx: cannot read the model file" in failure.detail


def test_time_spent_waiting_for_a_lane_is_told(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines()
    [engine] = engines_of(server)
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        with stopped(engine):
            post = pool.submit(client.post, "/predict", content=portrait_jpeg, headers=JPEG)
            wait_until(lambda: server.state.lifecycle.in_flight == 1)
            time.sleep(0.3)
        told = post.result().json()["timings_ms"]
    assert told["queue"] > 250
    assert told["total"] > 250 + told["decode"] + told["detect"] + told["classify"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_what_a_library_writes_past_the_log_is_a_line_of_it(
    serve_engines: ServeEngines,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = serve_engines(log_format="json")
    [engine] = engines_of(server)
    with Path(f"/proc/{engine.pid}/fd/2").open("w") as standard_error:
        print("Corrupt data: 99 extraneous bytes", file=standard_error)

    def told() -> list[str]:
        records = (r for r in caplog.records if r.getMessage() == "an engine's library says")
        return [vars(record)["line"] for record in records]

    wait_until(lambda: told() == ["Corrupt data: 99 extraneous bytes"])
    assert "extraneous" not in capfd.readouterr().err


def test_engine_that_cannot_be_started_again_is_tried_until_it_can(
    serve_engines: ServeEngines, portrait_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve_engines()
    launch, failures = engine_link._launch, iter([OSError("too many open files")])

    def fail_once(ends: Sequence[socket.socket]) -> subprocess.Popen[bytes]:
        for failure in failures:
            raise failure
        return launch(ends)

    monkeypatch.setattr(engine_link, "_launch", fail_once)
    files = psutil.Process().num_fds()
    engines_of(server)[0].kill()
    with server.client() as client:
        wait_until(lambda: metric(client, "lan_fer_engine_restarts_total") == 2)
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
    assert psutil.Process().num_fds() <= files + 2  # the client's own


def test_engine_started_again_with_other_files_says_so(
    tmp_path: Path, serve_engines: ServeEngines
) -> None:
    model = tmp_path / "model.onnx"
    float32 = load_settings().model_path
    int8 = float32.with_suffix(".int8.onnx")
    model.write_bytes(float32.read_bytes())
    server = serve_engines(model_path=model)
    with server.client() as client:
        before = client.get("/model").json()["classifier"]
        model.write_bytes(int8.read_bytes())
        engines_of(server)[0].kill()
        wait_until(lambda: client.get("/model").json()["classifier"] != before)
        after = client.get("/model").json()["classifier"]
        assert after["version"] != before["version"]
        assert metric(client, "lan_fer_model_info", version=after["version"][7:]) == 1


def test_engine_gets_neither_keys_nor_modules_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise SystemExit('imported from the working directory')")
    command = [sys.executable, "-P", "-m", "service.cli", "serve", "--port", "0"]
    package = str(Path(engines.__file__).parents[1])
    environment = os.environ | {"LAN_FER_API_KEYS": "a=" + "k" * 40, "PYTHONPATH": package}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, cwd=tmp_path, env=environment)
    try:
        wait_until(lambda: b"event=ready" in log.read_bytes() or process.poll() is not None)
        [engine] = psutil.Process(process.pid).children()
        assert not [name for name in engine.environ() if name.startswith("LAN_FER_")]
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_stop_during_the_start_is_no_failure() -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    children = psutil.Process(process.pid).children
    wait_until(lambda: bool(children()))
    [engine] = children()
    process.terminate()
    engine.terminate()  # a whole cgroup is told to end, say
    _, log = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, log
    assert b"Traceback" not in log


# --- parts ---------------------------------------------------------------------------------------


def test_messages_arrive_whole_however_they_are_cut() -> None:
    received: list[tuple[Any, bytes]] = []
    sent: list[bytes] = []

    class Wire:
        def is_closing(self) -> bool:
            return False

        def writelines(self, pieces: list[bytes]) -> None:
            sent.extend(pieces)

    sender = Messages(lambda *_: None, lambda: None)
    sender.connection_made(Wire())  # type: ignore[arg-type]
    sender.send(Drop(3))
    sender.send(Ready(), b"photo" * 10)
    sender.send(Drop(4))
    stream = b"".join(sent)
    for size in (1, 7, len(stream)):
        received.clear()
        receiver = Messages(lambda *message: received.append(message), lambda: None)
        for start in range(0, len(stream), size):
            receiver.data_received(stream[start : start + size])
        assert received == [(Drop(3), b""), (Ready(), b"photo" * 10), (Drop(4), b"")]


def test_blocking_end_takes_what_the_other_sends() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = BlockingMessages(ours)
        sender.put(Drop(3))
        sender.flush()
        assert BlockingMessages(theirs).receive() == (Drop(3), b"")
        ours.sendall(b"half a he")
        ours.shutdown(socket.SHUT_WR)
        assert BlockingMessages(theirs).receive() is None


def test_lane_pixels_come_first_come_first_served() -> None:
    pixels, order = LanePixels(100), list[int]()
    pixels.take(80, lambda: None)

    def wait(number: int, count: int) -> None:
        pixels.take(count, lambda: None)
        order.append(number)
        pixels.give_back(count)

    threads = []
    for number, count in enumerate((500, 10)):  # larger than all there is, and one that would fit
        threads.append(threading.Thread(target=wait, args=(number, count)))
        threads[-1].start()
        wait_until(lambda: len(pixels._queue) == len(threads))
    assert order == []
    pixels.give_back(80)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert order == [0, 1]
    assert pixels.used == 0


def test_pixels_are_taken_at_once_only_where_nobody_waits() -> None:
    pixels = LanePixels(100)
    assert pixels.try_take(60)
    assert not pixels.try_take(60)
    waiting = threading.Thread(target=pixels.take, args=(50, lambda: None))
    waiting.start()
    wait_until(lambda: len(pixels._queue) == 1)
    assert not pixels.try_take(10)
    pixels.give_back(60)
    waiting.join(PATIENCE_SECONDS)
    assert pixels.used == 50


def test_photo_dropped_before_it_has_come_is_not_read() -> None:
    pipeline = Pipeline(load_networks(load_settings()), load_settings(), observer=Journal())
    lanes = _Lanes(pipeline, LanePixels(1), [])
    lanes.drop(7)
    photo = Read(7, keep_faces, USUAL, {}, time.perf_counter())
    answer = lanes._answer(photo, b"never looked at")
    assert isinstance(answer.error, UnavailableError)


def test_lane_that_nobody_waits_for_leaves_the_queue() -> None:
    pixels = LanePixels(100)
    pixels.take(80, lambda: None)

    def dropped() -> None:
        raise UnavailableError("nobody waits for this photo")

    with pytest.raises(UnavailableError):
        pixels.take(50, dropped)
    pixels.take(20, lambda: None)
    assert pixels.used == 100


class Unpicklable:
    """What no engine can send."""

    def __call__(self, *_: object) -> object:
        return lambda: None


def test_engine_whose_lane_fails_is_replaced(
    serve_engines: ServeEngines, portrait_jpeg: bytes
) -> None:
    server = serve_engines()
    [before] = engines_of(server)
    with server.client() as client:
        loop = server.state.reader._engines[0].ready.get_loop()  # type: ignore[attr-defined]
        work = server.state.reader.recognize(portrait_jpeg, Unpicklable())
        with pytest.raises(UnavailableError, match="ended"):
            asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_SECONDS)
        wait_until(lambda: metric(client, "lan_fer_engine_restarts_total") == 1)
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200
    assert engines_of(server) != [before]
