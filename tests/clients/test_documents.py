"""Every example in the documents runs, against a real service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from numpy.typing import NDArray

from service.video import VideoWriter
from tests.service.serving import RunningServer

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8000"
PATIENCE_SECONDS = 300
DOCUMENTS = ("docs/clients.md", "docs/python.md", "docs/cli.md", "clients/python/README.md")
# Tested elsewhere: installing (slow), Ray (make test-bulk), and what only a person's shell can do.
NOT_HERE = re.compile(r"pip install|lan-fer bulk|register-python-argcomplete")
COMMANDS = {
    "sh": ["bash", "-euo", "pipefail"],
    "python": [sys.executable],
    "js": ["node", "--input-type=module", "-"],
}


def examples() -> list[ParameterSet]:
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for number, (kind, code) in enumerate(
            re.findall(r"```(sh|python|js)\n(.*?)```", text, re.S)
        ):
            if not NOT_HERE.search(code):
                found.append(pytest.param(kind, code, id=f"{document}-{number}-{kind}"))
    return found


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, portrait: NDArray[np.uint8], portrait_jpeg: bytes
) -> Path:
    """What the examples read."""
    path = tmp_path_factory.mktemp("examples")
    (path / "photos").mkdir()
    for name in ("photo.jpg", "photos/first.jpg"):
        (path / name).write_bytes(portrait_jpeg)
    (path / "text.txt").write_text("no photo")
    writer = VideoWriter(path / "clip.mp4", 10.0)
    for _ in range(3):
        writer.write(portrait)
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "code"), examples())
def test_example_runs(kind: str, code: str, folder: Path, server: RunningServer) -> None:
    if not shutil.which(COMMANDS[kind][0]):
        pytest.skip(f"{COMMANDS[kind][0]} is not installed")
    for left_over in ("answers.csv", "answers.jsonl", "clip.csv"):
        (folder / left_over).unlink(missing_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    libraries = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    done = subprocess.run(
        COMMANDS[kind],
        input=code.replace(ADDRESS, server.url),
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": libraries, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or kind == "sh"
