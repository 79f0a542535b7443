"""The TypeScript client against a real service: `make test-clients`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clients.openapi import TARGET, document
from tests.service.serving import RunningServer

pytestmark = pytest.mark.node

CLIENT = Path(__file__).resolve().parents[2] / "clients" / "typescript"
PATIENCE_SECONDS = 540


def run(*command: str, folder: Path = CLIENT, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


@pytest.mark.parametrize("place", ["project/lan-fer", "lan-fer"])
@pytest.mark.parametrize("mode", ["development", "production"])
def test_a_new_project_installs_it_from_a_folder_as_its_readme_says(
    place: str, mode: str, server: RunningServer, portrait_jpeg: bytes, tmp_path: Path
) -> None:
    """A fresh checkout, beside the project or in it: nothing is built, no compiler is there."""
    made_here = shutil.ignore_patterns("node_modules", "dist", "build")
    shutil.copytree(CLIENT, tmp_path / place, ignore=made_here)
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    (project / "package.json").write_text('{"private": true, "type": "module"}')
    (project / "photo.jpg").write_bytes(portrait_jpeg)
    run("npm", "install", str(tmp_path / place), folder=project, NODE_ENV=mode)

    readme = (CLIENT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```ts\n(.*?)```", readme, re.S)
    (project / "example.mts").write_text(example.replace("http://127.0.0.1:8000", server.url))
    tsc = ["npx", "tsc", "--strict", "--target", "es2022", "--module", "nodenext"]
    types = ["--types", "node", "--typeRoots", "node_modules/@types", "--outDir", str(project)]
    run(*tsc, *types, str(project / "example.mts"))
    assert run("node", "example.mjs", folder=project).startswith("happiness {")
