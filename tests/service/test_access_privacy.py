"""The real command, run and stopped: no photo and no key is left in its logs or on the disk."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY, WRONG = "key-0123456789abcdef", "wrong-0123456789abcdef"
MARK = b"SECRET-IN-THE-PHOTO"
NAME = 'me\n{"level":"error"} SECRET-NAME.jpg'


@dataclass(frozen=True)
class Left:
    """What a run left behind."""

    log: str
    files: list[Path]


def noisy_photo(side: int) -> bytes:
    """A PNG that hardly compresses: 3 bytes a pixel, with MARK in its text."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    text = PngInfo()
    text.add_text("Comment", MARK.decode())
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def ask_everything(client: httpx.Client, photo: bytes) -> None:
    """Good, bad and hostile requests; each must be answered, whatever the answer."""
    for key in (KEY, WRONG):
        headers = {"X-API-Key": key, "X-Request-ID": 'x" level=error', "User-Agent": MARK.decode()}
        client.post("/predict", files={"file": (NAME, photo)}, headers=headers)
        client.post("/predict", content=photo, headers={**headers, "content-type": "image/png"})
        broken = photo[: len(photo) // 2]
        client.post("/predict", content=broken, headers={**headers, "content-type": "image/png"})
        text = base64.b64encode(photo).decode()
        client.post("/predict", json={"image": text}, headers=headers)
        client.post("/predict", json={"image": text[:-5] + "!"}, headers=headers)
        client.post(f"/predict?max_faces={MARK.decode()}", content=photo, headers=headers)
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
        client.post("/v2/models/lan-fer/infer", json={"inputs": [tensor]}, headers=headers)
        client.get(f"/{MARK.decode()}%0A?key={KEY}", headers={"Authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    temporary, log = tmp_path_factory.mktemp("tmp"), tmp_path_factory.mktemp("log") / "log"
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "LAN_FER_API_KEYS": f"app={KEY}",
        "LAN_FER_LOG_FORMAT": "json",
        "LAN_FER_LOG_LEVEL": "debug",
        "LAN_FER_PORT": "0",
    }
    command = [sys.executable, "-m", "service.cli", "serve"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.PIPE, env=environment, text=True
        )
        assert process.stderr is not None
        lines: list[str] = []
        url = None
        while url is None:
            line = process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
            url = re.search(r'"url": "(http://[^"]+)"', line)
        try:
            with httpx.Client(base_url=url[1], timeout=60, trust_env=False) as client:
                # Above and below the megabyte from which Starlette would spool to the disk.
                for side in (64, 900):
                    ask_everything(client, noisy_photo(side))
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    files = [path for path in temporary.rglob("*") if path.is_file()]
    return Left("".join(lines) + rest + log.read_text(), files)


def test_photos_are_never_written(left: Left) -> None:
    assert left.files == []


def test_the_log_holds_no_photo_no_key_and_no_name_of_a_file(left: Left) -> None:
    photo = noisy_photo(64)
    pixels_as_text = base64.b64encode(photo).decode()[200:260]
    for secret in (
        KEY,
        WRONG,
        MARK.decode(),
        "SECRET-NAME",
        pixels_as_text,
        repr(photo[:40])[2:-1],
    ):
        assert secret not in left.log


def test_every_line_is_json_and_says_whose_request_it_was(left: Left) -> None:
    """Line ends and quotes in names and headers make no lines of their own."""
    lines = [json.loads(line) for line in left.log.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == 2 * 2 * 8
    assert {line["level"] for line in requests} == {"info"}
    for line in requests:
        assert re.fullmatch(r"[0-9a-f]{32}", line["request_id"])
        assert {"status", "route", "bytes_in", "bytes_out", "ms"} <= line.keys()
    read = [line for line in requests if line["status"] == 200]
    assert {line.get("key_name") for line in read} == {"app"}
    for line in read:
        assert {"faces", "decode_ms", "detect_ms", "classify_ms", "queue_ms"} <= line.keys()
    assert {line["status"] for line in requests} >= {200, 403, 404, 422}
