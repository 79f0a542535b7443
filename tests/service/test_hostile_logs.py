"""Nothing that a client writes gets into the log unchecked, in either format."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx
import pytest

from tests.service.serving import PATIENCE_SECONDS

INJECTED = 'INJECTED"\r\nlevel=error event="INJECTED" \x1b[31m\u2028{"level": "critical"}'
RAW_REQUESTS = (
    b"GET /INJECTED%0d%0aINJECTED?INJECTED=%1b[31m HTTP/1.1\r\nHost: h\r\n"
    b"Connection: close\r\n\r\n",
    b"INJECTED / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: INJECTED\x1b[31m\r\nX-Request-ID: INJECTED level=error\r\n"
    b"X-API-Key: INJECTED\r\nAuthorization: Bearer INJECTED\r\nConnection: close\r\n\r\n",
    b"\x16\x03\x01INJECTED\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/INJECTED\r\n"
    b"Content-Length: 3\r\nConnection: close\r\n\r\nabc",
)


def attack(url: str, photo: bytes) -> None:
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
        files = {"file": (INJECTED, photo, "image/jpeg")}
        assert client.post("/predict", files=files).status_code == 200
        fields = {INJECTED: INJECTED}
        assert client.post("/predict", files=files, data=fields).status_code == 200
        client.post("/predict", json={"image": INJECTED, INJECTED: 1})
        client.post("/predict", params={"class": INJECTED, "explain": "evidence"}, content=photo)
    address = urlsplit(url)
    for request in RAW_REQUESTS:
        with socket.create_connection(
            (str(address.hostname), address.port), timeout=PATIENCE_SECONDS
        ) as connection:
            connection.sendall(request)
            while connection.recv(65536):
                pass


def log_of_an_attack(style: str, photo: bytes) -> list[str]:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, "--log-format", style, "--log-level", "debug"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    attack(found[0], photo)
                    process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
    return lines


def are_json(lines: Sequence[str]) -> bool:
    return all(isinstance(json.loads(line), dict) for line in lines)


def are_pairs(lines: Sequence[str]) -> bool:
    return all(re.match(r"time=\S+ level=\w+ logger=\S+ event=", line) for line in lines)


@pytest.mark.parametrize(("style", "are_whole"), [("json", are_json), ("plain", are_pairs)])
def test_log_cannot_be_injected_into(
    style: str, are_whole: Callable[[Sequence[str]], bool], portrait_jpeg: bytes
) -> None:
    lines = log_of_an_attack(style, portrait_jpeg)
    assert sum("request" in line for line in lines) >= 8
    assert are_whole(lines)
    assert not [line for line in lines if "INJECTED" in line]
    assert not [line for line in lines if re.search(r"[\x00-\x09\x0b-\x1f\u2028]", line)]
