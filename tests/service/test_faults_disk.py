"""The service needs no disk: it serves where not a byte can be written."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.server import listen
from tests.service.image_files import encoded
from tests.service.serving import PATIENCE_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]


def allow_no_file_writes() -> None:
    """As on a full disk, for whoever runs the tests: each write to a file fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@contextmanager
def serving_without_disk(port: int, log: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    with subprocess.Popen(
        command,
        cwd="/proc",  # where nobody may write
        env={"TMPDIR": "/proc/none", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stderr=log,
        text=True,
        preexec_fn=allow_no_file_writes,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def large_upload() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), np.uint8)
    photo = encoded(Image.fromarray(noise), "PNG")
    assert len(photo) > 3_000_000
    return photo


def use(url: str) -> None:
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
        photo = large_upload()
        assert client.post("/predict", files={"file": photo}).json()["faces"] == []
        drawn = client.post(
            "/predict",
            content=photo,
            headers={"content-type": "image/png", "accept": "image/png"},
        )
        assert drawn.content.startswith(b"\x89PNG")
        assert client.post("/predict", content=b"", headers={}).status_code == 400
        assert client.get("/metrics").status_code == 200
        assert client.get("/docs").status_code == 200


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_serves_where_nothing_can_be_written() -> None:
    with serving_without_disk(0, subprocess.PIPE) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "event=ready" in line)
        found = re.search(r"url=(http://\S+)", line)
        assert found, line
        use(found[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_serves_though_its_log_cannot_be_written(tmp_path: Path, free_port: int) -> None:
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{free_port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    with log.open("w") as file, serving_without_disk(free_port, file.fileno()) as process:
        wait_until(is_ready)
        use(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert log.read_text() == ""


@pytest.fixture
def free_port() -> int:
    with listen("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
    return port
