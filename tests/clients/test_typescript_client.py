"""The TypeScript client against a real service: `make test-clients`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clients.openapi import TARGET, document
from tests.service.serving import RunningServer

pytestmark = pytest.mark.node

CLIENT = Path(__file__).resolve().parents[2] / "clients" / "typescript"
PATIENCE_SECONDS = 540


def run(*command: str, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=CLIENT,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_document_of_the_clients_is_the_services() -> None:
    assert TARGET.read_text(encoding="utf-8") == document(), "run `make clients` and commit"


def test_types_are_the_documents(tmp_path: Path) -> None:
    written = tmp_path / "schema.ts"
    run("npx", "openapi-typescript", str(TARGET), "--output", str(written))
    now = (CLIENT / "src" / "schema.ts").read_text(encoding="utf-8")
    assert written.read_text(encoding="utf-8") == now, "run `make clients` and commit"


def test_client_does_what_it_says(
    server: RunningServer, portrait_jpeg: bytes, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(portrait_jpeg)
    run("npm", "test", LAN_FER_URL=server.url, LAN_FER_PHOTO=str(photo))
