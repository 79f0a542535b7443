from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import httpx
import pytest
from PIL import ExifTags, Image

from service.imaging import ImageLimits, decode_image
from service.logs import OURS, configure_logging
from tests.service.image_files import encoded, rgb
from tests.service.serving import wait_until

JPEG = {"content-type": "image/jpeg"}


class Lines:
    """What the service has logged. A line is written after its reply: wait for it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._lines: list[str] = []

    def _read(self) -> list[str]:
        # The client in this process logs as well.
        self._lines += [
            line
            for line in self._capsys.readouterr().err.splitlines()
            if re.search(r'logger=service|"logger": "service', line)
        ]
        return self._lines

    def wait_for(self, count: int) -> list[str]:
        wait_until(lambda: len(self._read()) >= count)
        assert len(self._lines) == count
        return self._lines


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return Lines(capsys)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, OURS)]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_json_line_has_what_an_operator_needs(
    client: httpx.Client, portrait_jpeg: bytes, lines: Lines
) -> None:
    configure_logging("info", "json")
    response = client.post("/predict", content=portrait_jpeg, headers=JPEG)
    line = json.loads(lines.wait_for(1)[0])
    assert line["request_id"] == response.headers["x-request-id"]
    expected = {"method": "POST", "route": "/predict", "status": 200, "faces": 1, "level": "info"}
    assert line.items() >= expected.items()
    assert line["bytes_in"] == len(portrait_jpeg)
    assert line["bytes_out"] == len(response.content)
    assert {"time", "ms", "decode_ms", "detect_ms", "classify_ms", "queue_ms"} <= set(line)


def test_refusal_names_its_problem(client: httpx.Client, lines: Lines) -> None:
    configure_logging("info", "plain")
    client.post("/predict", content=b"no image", headers=JPEG)
    (line,) = lines.wait_for(1)
    assert " status=415 problem=unsupported-media-type " in line


@pytest.mark.parametrize("style", ["plain", "json"])
def test_exception_is_logged_on_one_line_with_the_request_id(
    client: httpx.Client,
    portrait_jpeg: bytes,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    style: str,
) -> None:
    configure_logging("info", "json" if style == "json" else "plain")

    def break_down(*_: object, **__: object) -> None:
        raise KeyError("the reason")

    monkeypatch.setattr("service.routes.predict.check_options", break_down)
    response = client.post("/predict", content=portrait_jpeg, headers=JPEG)
    error, access = lines.wait_for(2)
    assert "the reason" in error
    assert "Traceback" in error
    for line in (error, access):
        assert response.headers["x-request-id"] in line


def test_level_is_honoured(client: httpx.Client, lines: Lines) -> None:
    configure_logging("warning", "plain")
    client.get("/health/live")
    configure_logging("info", "plain")
    client.get("/health/ready")
    assert "route=/health/ready" in lines.wait_for(1)[0]


@pytest.mark.parametrize("given", ["abc", "A.b_c-9", "x" * 128])
def test_good_request_id_is_kept(client: httpx.Client, given: str) -> None:
    response = client.get("/no/such/path", headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] == given
    assert response.json()["request_id"] == given


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"a=b", b'a"b', b"\xc3\xa9"])
def test_bad_request_id_is_replaced(client: httpx.Client, given: bytes) -> None:
    response = client.get("/health/live", headers=[(b"x-request-id", given)])
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_what_a_photo_says_of_people_is_not_logged(image_format: str) -> None:
    configure_logging("debug", "plain", stream=(stream := StringIO()))
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Artist] = 6, "Ada Secret"
    data = encoded(rgb(), image_format, exif=tags)
    assert b"Ada Secret" in data
    decode_image(data, ImageLimits(10_000, 10_000))
    logging.getLogger("service.imaging").debug("our own")
    assert "our own" in stream.getvalue()
    assert "Secret" not in stream.getvalue()


def test_paths_of_clients_are_not_logged(client: httpx.Client, lines: Lines) -> None:
    configure_logging("debug", "plain")
    client.get("/secret%0Alevel=error/path?token=secret")
    (line,) = lines.wait_for(1)
    assert "secret" not in line
    assert "route=unmatched" in line


@pytest.mark.parametrize("size", [50, 500, 2000, 5000, 20_000])
def test_lines_that_nobody_takes_are_dropped_and_counted(size: int) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as taken, os.fdopen(writer, "w") as stream:
        configure_logging("info", "plain", stream=stream)
        logger = logging.getLogger("service.here")
        for number in range(1000):
            logger.info("x" * size, extra={"number": number})
        os.set_blocking(reader, False)
        text = taken.read()
        logger.info("y" * 30_000)  # some pages of a pipe
        lines = taken.read().splitlines()
    kept = len(text.splitlines())
    assert len(re.findall("event=x* number=", text)) == kept, "each line whole"
    assert len(text) > 20_000
    (dropped,) = re.findall(r"lines dropped.* lines=(\d+)", "\n".join(lines))
    assert int(dropped) == 1000 - kept
    assert "y" * 30_000 in lines[-1]


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    """A pipe whose reader stands still: `lan-fer serve 2>&1 | less`."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = process.stderr
            assert lines is not None
            url = next(re.findall(r"url=(\S+)", line)[0] for line in lines if "url=" in line)
            with httpx.Client(base_url=url) as client:
                for _ in range(500):
                    assert client.get("/nope").status_code == 404
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("pipe", [True, False], ids=["pipe", "file"])
def test_processes_that_share_a_log_keep_their_lines_whole(tmp_path: Path, *, pipe: bool) -> None:
    """The server's and an engine's, tracebacks among them."""
    code = (
        "import logging, sys; from service.logs import configure_logging\n"
        "configure_logging('info', 'plain')\n"
        "for _ in range(300): logging.getLogger('service.x').info(sys.argv[1] * 3000)"
    )
    path = tmp_path / "log"
    with path.open("a") as file:
        stream = subprocess.PIPE if pipe else file
        shell = f'{sys.executable} -c "$0" a & {sys.executable} -c "$0" b; wait'
        run = subprocess.run(["sh", "-c", shell, code], stderr=stream, text=True, check=True)
    lines = (run.stderr if pipe else path.read_text()).splitlines()
    written = [line for line in lines if "lines dropped" not in line]
    assert len(written) > 100
    for line in written:
        assert re.fullmatch(r"time=\S+ level=info logger=service.x event=(a{3000}|b{3000})", line)
