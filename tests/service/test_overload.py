from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import pytest

import service.connection as connection_module
import service.shedding as shedding_module
from service.budgets import ByteBudget, NoRoomError, PixelBudget
from service.errors import OverloadedError
from service.expression import ExpressionModel
from service.faces.looks import MOST_SPOTS, Round, Search, plan_rounds
from service.pipeline import MAX_LOOKS, Networks
from service.runtime import SessionSettings
from service.settings import Settings
from tests.service.holding import (
    JPEG,
    Crowd,
    HeldDetector,
    grey_photo,
    queued_images,
    raw_request,
    read_all,
)
from tests.service.serving import (
    PATIENCE_SECONDS,
    RunningServer,
    Serve,
    assert_problem,
    wait_until,
)


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


def test_photos_turned_away_are_counted_and_logged_together(
    serve_held: Callable[..., RunningServer],
    held: HeldDetector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve_held(max_in_flight_images=1)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    with server.client() as client:
        for _ in range(3):
            refused = client.post("/predict", content=b"x", headers={"x-request-id": "mine"})
            assert_problem(refused, 429, "overloaded")
            assert refused.headers["x-request-id"] == "mine"
            assert refused.headers["x-content-type-options"] == "nosniff"
            assert refused.headers["cache-control"] == "no-store"
        name = 'lan_fer_http_requests_total{method="POST",route="/predict",status="429"}'
        wait_until(lambda: f"{name} 3.0" in client.get("/metrics").text)
        metrics = client.get("/metrics").text
    assert 'lan_fer_problems_total{problem="overloaded"} 3.0' in metrics
    # All three are logged, in one line or in several.
    wait_until(lambda: turned_away(caplog) == 3)
    held.gate.set()
    assert first().status_code == 200


def send_at_once(
    server: RunningServer, requests: Sequence[bytes], stack: ExitStack
) -> list[socket.socket]:
    """Connections, one a request, of which all are read in one turn of the server's loop."""
    crowd = [stack.enter_context(socket.create_connection(server.address)) for _ in requests]
    for connection in crowd:
        connection.settimeout(PATIENCE_SECONDS)
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    server.uvicorn.servers[0].get_loop().call_soon_threadsafe(time.sleep, 0.3)
    for connection, request in zip(crowd, requests, strict=True):
        connection.sendall(request)
    return crowd


def test_photos_that_come_at_once_do_not_all_pass_for_the_one_there_is_room_for(
    serve_held: Callable[..., RunningServer],
    held: HeldDetector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each that did would be refused by the app, at ten times the cost."""
    server = serve_held(max_in_flight_images=2)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    photo = grey_photo(2)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: "
    request = f"{head}{len(photo)}\r\n\r\n".encode() + photo
    with ExitStack() as stack:
        crowd = send_at_once(server, [request] * 8, stack)
        wait_until(lambda: turned_away(caplog) == 7)
        held.gate.set()
        replies = [connection.recv(65536) for connection in crowd]
    assert sorted(reply[9:12] for reply in replies) == [b"200", *[b"429"] * 7]
    assert first().status_code == 200


def test_heads_alone_keep_others_out_neither_for_long_nor_of_much(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shedding_module, "ARRIVES_SECONDS", 0.5)
    server = serve(max_in_flight_images=16)
    with ExitStack() as stack:
        client = stack.enter_context(server.client())

        def status() -> int:
            return client.post("/predict", content=grey_photo(1), headers=JPEG).status_code

        def sends_head_alone() -> None:
            stack.enter_context(raw_request(server, ["Content-Length: 1000"]))

        def hold(permits: int) -> ExitStack:
            held = stack.enter_context(ExitStack())
            for _ in range(permits):
                held.enter_context(server.state.lifecycle.admit_image())
            return held

        with hold(15):
            sends_head_alone()
            wait_until(lambda: status() == 429)
            wait_until(lambda: status() == 200)
        hold(13)
        for _ in range(9):
            sends_head_alone()
        assert status() == 200  # two of them count, of sixteen permits
        hold(1)
        assert status() == 429
        wait_until(lambda: status() == 200)


@pytest.mark.parametrize("leaves", [False, True])
def test_heads_that_are_answered_or_whose_clients_leave_keep_nobody_out(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, *, leaves: bool
) -> None:
    monkeypatch.setattr(shedding_module, "ARRIVES_SECONDS", PATIENCE_SECONDS)
    server = serve(max_in_flight_images=8, api_keys="someone=" + "k" * 32)
    key = {"Authorization": "Bearer " + "k" * 32}
    with ExitStack() as stack:
        client = stack.enter_context(server.client())
        for _ in range(7):
            stack.enter_context(server.state.lifecycle.admit_image())
        given = [f"{name}: {value}" for name, value in key.items()] if leaves else []
        for _ in range(20):
            with raw_request(server, ["Content-Length: 1000", *given]) as connection:
                if not leaves:
                    assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")

        def status() -> int:
            return client.post("/predict", content=grey_photo(1), headers=JPEG | key).status_code

        if leaves:  # which is seen a little later
            wait_until(lambda: status() == 200)
        assert status() == 200


def test_an_idle_service_refuses_nobody_for_what_others_might_have_wanted(serve: Serve) -> None:
    server = serve(max_in_flight_images=1)
    photo = grey_photo(2)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    wrong, right = (
        (head % (kind, len(photo))).encode() + photo for kind in ("text/x", "image/png")
    )
    with ExitStack() as stack:
        crowd = send_at_once(server, [wrong, right], stack)
        assert [connection.recv(65536)[9:12] for connection in crowd] == [b"415", b"200"]


def test_photos_turned_away_on_one_connection_leave_it_in_order(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    """Whether their heads are parsed or not, whole or in pieces, and whatever follows them."""
    server = serve_held(max_in_flight_images=1)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    plain = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + bytes(70_000)
    parsed = plain.replace(b"Host", b"X-Request-ID: mine\r\nHost")
    health = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    requests = [plain, parsed, plain, health, plain, parsed, health]
    sent = b"".join(requests)
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        for start in range(0, len(sent), 30_011):
            connection.sendall(sent[start : start + 30_011])
            time.sleep(0.002)
        replies = b""
        while replies.count(b"HTTP/1.1 ") < len(requests):
            replies += connection.recv(65536) or pytest.fail("the connection has ended")
    statuses = [int(reply[:3]) for reply in replies.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [429, 429, 429, 200, 429, 429, 200]
    assert replies.count(b"x-request-id: mine") == 2
    held.gate.set()
    assert first().status_code == 200


@pytest.mark.parametrize("line", ["", "X-Request-ID: mine\r\n"])
def test_refusals_that_nobody_reads_are_not_kept(serve: Serve, line: str) -> None:
    """Told to heads that need no parser, and to others."""
    server = serve(max_in_flight_images=1)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\n{line}Content-Length: 0\r\n\r\n".encode()
    with server.state.lifecycle.admit_image():
        with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head * 1000)
            reply = read_all(connection)
        # In pieces that hold few enough, to a client that reads nothing.
        with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.5)
            sent = 0
            with suppress(OSError):
                while sent < 100_000:
                    connection.sendall(head * 4)
                    sent += 4
                    time.sleep(0.0002)
    assert reply.count("HTTP/1.1 429 ") == 1 + connection_module.MAX_PIPELINED
    assert reply.count("connection: close") == 1
    assert sent < 100_000


@pytest.mark.parametrize("line", [[], ["X-Request-ID: mine"]], ids=["plain head", "parsed head"])
@pytest.mark.parametrize("drips", [False, True])
def test_body_that_is_turned_away_may_neither_stall_nor_drip(
    serve: Serve, line: list[str], *, drips: bool
) -> None:
    server = serve(max_in_flight_images=1, stall_timeout_ms=300)
    with (
        server.state.lifecycle.admit_image(),
        raw_request(server, ["Content-Length: 1000000", *line]) as connection,
    ):
        assert connection.recv(65536).startswith(b"HTTP/1.1 429 ")
        connection.sendall(b"x" * 10)
        started, ended = time.monotonic(), False
        connection.settimeout(0.05)
        while not ended:
            assert time.monotonic() - started < 5, "it goes on"
            with suppress(TimeoutError):
                ended = connection.recv(65536) == b""
            if drips and not ended:
                connection.sendall(b"x")


def turned_away(caplog: pytest.LogCaptureFixture) -> int:
    lines = (r for r in caplog.records if r.getMessage() == "photos turned away")
    return sum(vars(line)["count"] for line in lines)


def test_refusal_can_be_read_by_a_page_of_another_origin(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(max_in_flight_images=1, cors_origins="https://elsewhere.example")
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    with server.client() as client:
        origin = {"origin": "https://elsewhere.example"}
        refused = client.post("/predict", content=b"x", headers=origin)
    assert_problem(refused, 429, "overloaded")
    assert refused.headers["access-control-allow-origin"] == "https://elsewhere.example"
    held.gate.set()
    assert first().status_code == 200


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
        wait_until(lambda: server.state.lifecycle.in_flight == 2)
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
        wait_until(lambda: server.state.bodies.held == 10)
    wait_until(lambda: server.state.bodies.held == 0)


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
    searches: tuple[Search, ...] = ("quick", "thorough")
    turns = [
        turn
        for h in sides
        for w in sides
        for search in searches
        for turn in plan_rounds(h, w, search)
    ]
    looks = [len(turn.looks) for turn in turns if isinstance(turn, Round)]
    assert max(*looks, MOST_SPOTS) <= MAX_LOOKS


# --- what a client asks for ---------------------------------------------------------------------


def test_client_may_ask_for_less_than_the_deadline(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held()
    crowd = Crowd(server)
    first = crowd.post(grey_photo(10))
    held.wait_until_entered()
    hurried = crowd.post(grey_photo(20), **{"X-Request-Timeout-Ms": "50"})
    assert "50 ms" in assert_problem(hurried(), 504, "deadline-exceeded")
    held.gate.set()
    assert first().status_code == 200
    assert crowd.post(grey_photo(30))().status_code == 200
    assert [20] not in held.brightness


def test_client_may_not_ask_for_more_than_the_deadline(
    serve_held: Callable[..., RunningServer],
) -> None:
    patient = Crowd(serve_held(deadline_ms=100)).post(
        grey_photo(10), **{"X-Request-Timeout-Ms": "99999999999999"}
    )
    assert "100 ms" in assert_problem(patient(), 504, "deadline-exceeded")


@pytest.mark.parametrize("wrong", ["0", "-5", "soon", "1.5", "nan", ""])
def test_wrong_deadline_is_refused(server: RunningServer, wrong: str) -> None:
    with server.client() as client:
        response = client.post(
            "/predict", content=b"x", headers={**JPEG, "X-Request-Timeout-Ms": wrong}
        )
    assert "X-Request-Timeout-Ms" in assert_problem(response, 422, "invalid-option")


# --- memory -------------------------------------------------------------------------------------


def test_photos_wait_until_their_pixels_fit(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(max_in_flight_pixels=64 * 64)
    crowd = Crowd(server)
    answers = [crowd.post(grey_photo(brightness)) for brightness in (10, 20, 30)]
    wait_until(lambda: server.state.lifecycle.in_flight == 3)
    held.wait_until_entered()
    assert server.state.load.pixels == 64 * 64
    held.gate.set()
    assert [answer().status_code for answer in answers] == [200] * 3
    # One at a time: never two in one batch.
    assert all(len(set(batch)) == 1 for batch in held.brightness)
    assert server.state.load.pixels == 0


def test_photo_that_waits_for_room_keeps_its_deadline(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(max_in_flight_pixels=64 * 64)
    crowd = Crowd(server)
    first = crowd.post(grey_photo(10))
    held.wait_until_entered()
    late = crowd.post(grey_photo(20), **{"X-Request-Timeout-Ms": "50"})
    assert_problem(late(), 504, "deadline-exceeded")
    held.gate.set()
    assert first().status_code == 200
    assert crowd.post(grey_photo(30))().status_code == 200
    assert [20] not in held.brightness
    assert server.state.load.pixels == 0


def test_photo_larger_than_the_budget_is_read_alone(serve: Serve) -> None:
    with serve(max_in_flight_pixels=4096).client() as client:
        response = client.post("/predict", content=grey_photo(10, side=100), headers=JPEG)
        assert response.status_code == 200


def test_bodies_that_do_not_fit_into_memory_are_refused(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    photo = grey_photo(10)
    server = serve_held(max_in_flight_bytes=1024 + len(photo))
    first = Crowd(server).post(photo)
    held.wait_until_entered()
    with server.client() as client:
        response = client.post("/predict", content=b"x" * 2000, headers=JPEG)
        assert "bytes" in assert_problem(response, 429, "overloaded")
        assert response.headers["retry-after"] == "1"
        held.gate.set()
        assert first().status_code == 200
        assert client.post("/predict", content=b"x" * 2000, headers=JPEG).status_code == 415
    assert server.state.bodies.held == 0


def test_who_sends_slowly_holds_no_permit(serve: Serve) -> None:
    server = serve(max_in_flight_images=1)
    slow = [raw_request(server, ["Content-Length: 1000"], b"x") for _ in range(5)]
    wait_until(lambda: server.state.bodies.held == len(slow))
    with server.client() as client:
        assert client.post("/predict", content=grey_photo(9), headers=JPEG).status_code == 200
    for connection in slow:
        connection.close()


def test_unsent_replies_count_as_bytes() -> None:
    budget = ByteBudget(100)
    unsent = 60
    budget.count_replies(lambda: unsent)
    with budget.hold() as take:
        take(40)
        with pytest.raises(OverloadedError):
            take(1)
        unsent = 0
        take(200)  # alone it may be larger
    assert budget.held == 0


def test_pixels_are_given_in_the_order_they_were_asked_for() -> None:
    async def scenario() -> list[str]:
        budget, order = PixelBudget(10), list[str]()

        async def photo(name: str, pixels: int) -> None:
            with budget.room() as room:
                await room.wait_for(pixels)
                order.append(name)
                await asyncio.sleep(0)

        with budget.room() as first:
            first.require(8)
            large = asyncio.create_task(photo("large", 9))
            await asyncio.sleep(0)
            small = asyncio.create_task(photo("small", 1))
            gone = asyncio.create_task(photo("gone", 1))
            await asyncio.sleep(0)
            gone.cancel()
            assert order == []
        await asyncio.gather(large, small, gone, return_exceptions=True)
        assert budget.used == 0
        return order

    assert asyncio.run(scenario()) == ["large", "small"]


def test_photo_that_is_no_longer_wanted_gets_no_room() -> None:
    budget = PixelBudget(10)
    with budget.room() as room:
        pass
    with pytest.raises(NoRoomError):
        room.require(1)
    assert budget.used == 0
