"""The load generator counts what a real server answers, and what it does not."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks import load
from benchmarks.load import FAILED, Record, Server, closed_loop, open_loop, requests

PHOTOS = [b"\xff\xd8first", b"\xff\xd8" + bytes(300_000)]
SECONDS = 0.3
HANGS_UP = 0

Load = Callable[[Server, list[bytes]], Awaitable[Record]]


class Answering:
    """A server that answers photos with these statuses in turn, and keeps what it was sent."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = itertools.cycle(statuses)
        self.photos: list[bytes] = []
        self.clients: set[tuple[str, int]] = set()

    async def answer(self, request: web.Request) -> web.Response:
        """Take one photo."""
        form = await request.post()
        photo = form["file"]
        assert isinstance(photo, web.FileField)
        self.photos.append(photo.file.read())
        assert request.transport is not None
        self.clients.add(request.transport.get_extra_info("peername"))
        status = next(self._statuses)
        if status == HANGS_UP:
            request.transport.abort()
        reply = web.Response(status=status or 200, text="{}")
        if status == 503:
            reply.force_close()
        return reply

    def under(self, run_load: Load, folder: Path) -> Record:
        """What the generator says of it."""

        async def run() -> Record:
            app = web.Application(client_max_size=10**6)
            app.router.add_post("/predict", self.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            server = Server(host, port)
            record = await run_load(server, requests(folder, f"{host}:{port}"))
            server.close()
            await runner.cleanup()
            return record

        return asyncio.run(run())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, photo in enumerate(PHOTOS):
        (tmp_path / f"{index}.jpg").write_bytes(photo)
    return tmp_path


def test_clients_send_whole_photos_and_keep_their_connections(folder: Path) -> None:
    server = Answering(200)
    record = server.under(lambda to, photos: closed_loop(to, photos, 4, SECONDS), folder)
    assert record.statuses.keys() == {200}
    assert record.statuses[200] == len(record.seconds) == len(server.photos) > 8
    assert set(server.photos) == set(PHOTOS)
    assert len(server.clients) == 4


def test_every_end_is_counted(folder: Path) -> None:
    server = Answering(200, 429, 503, 500, HANGS_UP)
    record = server.under(lambda to, photos: open_loop(to, photos, 200, SECONDS), folder)
    assert record.statuses.keys() == {200, 429, 503, 500, FAILED}
    assert sum(record.statuses.values()) == len(server.photos)
    summary = record.summary(SECONDS)
    assert summary["answered"] == record.statuses[200]
    assert summary["refused"] == record.statuses[429] + record.statuses[503]
    assert summary["failed"] == record.statuses[500] + record.statuses[FAILED]


def test_only_answers_count_in_the_closed_loop(folder: Path) -> None:
    server = Answering(200, 429, HANGS_UP)
    record = server.under(lambda to, photos: closed_loop(to, photos, 2, SECONDS, 0.0), folder)
    assert record.statuses.keys() == {200, 429, FAILED}
    assert len(record.seconds) == record.statuses[200]


def test_latency_counts_from_the_moment_a_photo_was_due(folder: Path) -> None:
    """The generator itself is held up; what was due meanwhile has waited."""

    async def held_up(to: Server, photos: list[bytes]) -> Record:
        loading = asyncio.create_task(open_loop(to, photos, 200, SECONDS))
        await asyncio.sleep(SECONDS / 3)
        time.sleep(SECONDS / 3)  # noqa: ASYNC251 - nothing goes on
        return await loading

    seconds = Answering(200).under(held_up, folder).seconds
    assert max(seconds) > SECONDS / 4
    assert min(seconds) < SECONDS / 8


def test_a_server_that_says_nothing_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "TIMEOUT_SECONDS", 0.1)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    async def run() -> Record:
        async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
            host, port = silent.sockets[0].getsockname()
            return await closed_loop(Server(host, port), requests(folder, "here"), 1, 0.05)

    assert asyncio.run(run()).statuses == {FAILED: 1}


def test_what_comes_before_a_reply_is_none(folder: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        try:
            await reader.read()
        finally:
            writer.close()

    async def run() -> Record:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as hinting:
            server = Server(*hinting.sockets[0].getsockname())
            record = Record()
            record.statuses[await server.post(requests(folder, "here")[0])] += 1
            server.close()
            return record

    assert asyncio.run(run()).statuses == {200: 1}


def test_a_server_that_is_not_there(folder: Path) -> None:
    async def run() -> Record:
        return await open_loop(Server("127.0.0.1", 9), requests(folder, "127.0.0.1:9"), 50, SECONDS)

    record = asyncio.run(run())
    assert record.statuses.keys() == {FAILED}
    assert record.summary(SECONDS)["failed"] > 0


def test_no_photos(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \*\.jpg in it"):
        requests(tmp_path, "localhost")
