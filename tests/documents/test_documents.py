"""The documents hold: links lead somewhere, commands are ones that there are, requests answer."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.api_page import openapi, page
from service.cli import build_parser
from tests.service.serving import RunningServer
from training.cli import build_parser as build_training_parser

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8000"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "models/*.md")
    for path in ROOT.glob(pattern)
)
# Every example of these runs in tests/clients.
RUN_THERE = ("docs/clients.md", "docs/python.md", "docs/cli.md")
PYTHON = re.compile(r"(?:\.venv/bin/)?(?:python|lan-fer|torchrun)$")


def text_of(page_name: str) -> str:
    return (ROOT / page_name).read_text(encoding="utf-8")


def blocks(page_name: str) -> list[str]:
    return re.findall(r"^ *```sh\n(.*?)^ *```", text_of(page_name), re.M | re.S)


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command; settings before it, comments and a final & left out."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in re.split(r'(?:&&|\||;)(?=(?:[^"]*"[^"]*")*[^"]*$)', line):  # not in quotes
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                del words[0]
            if words and "..." not in words:
                yield [word for word in words if word not in ("&", "\\")]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page_name", PAGES)
def test_links_lead_somewhere(page_name: str) -> None:
    text = text_of(page_name)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page_name).parent / path if path else ROOT / page_name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page_name", sorted(set(PAGES) - set(RUN_THERE)))
def test_commands_are_ones_that_there_are(page_name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for block in blocks(page_name):
        for words in commands(block):
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets, words
            elif PYTHON.search(words[0]):
                assert_known(words)


def assert_known(words: list[str]) -> None:
    """A command of ours, with flags that it has."""
    name = words[0].rpartition("/")[2]
    if "training" in words and "-m" in words:
        build_training_parser().parse_args(words[words.index("training") + 1 :])
    elif name == "lan-fer" and words[1] in ("serve", "predict", "bench", "model"):
        build_parser().parse_args(words[1:])
    elif words[1:2] and words[1].endswith(".py"):
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for flag in (word for word in words if word.startswith("--")):
            assert f'"{flag}"' in source, words
    elif words[1:3] == ["-m", "pytest"]:
        files = [word for word in words if word.endswith(".py")]
        assert all((ROOT / file).exists() for file in files), words


@pytest.mark.parametrize(
    ("page_name", "block"),
    [
        pytest.param(name, block, id=f"{name}-{number}")
        for name in PAGES
        if name not in RUN_THERE
        for number, block in enumerate(blocks(name))
        if ADDRESS in block and "curl" in block
    ],
)
def test_requests_answer(
    page_name: str, block: str, server: RunningServer, portrait_jpeg: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(portrait_jpeg)
    script = block.replace(ADDRESS, server.url).replace("curl ", "curl --fail-with-body ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_readmes_photo_gets_the_answer_in_readme(server: RunningServer, tmp_path: Path) -> None:
    [example] = re.findall(r"^```json\n(.*?)^```", text_of("README.md"), re.M | re.S)
    [command] = (block for block in blocks("README.md") if "'photo.jpg'" in block)
    script = command.replace(".venv/bin/python", shlex.quote(sys.executable))
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True)
    with server.client() as client:
        photo = (tmp_path / "photo.jpg").read_bytes()
        assert_shortened(json.loads(example), client.post("/predict", files={"file": photo}).json())
        drawn = (ROOT / "docs" / "drawn.jpg").read_bytes()
        assert client.post("/predict", files={"file": drawn}).json()["faces_found"] == 1


def test_git_leaves_out_photos_of_people_and_networks_made_of_them(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    ours = (ROOT / "models" / "SHA256SUMS").read_text(encoding="utf-8").split()[1::2]
    shipped = {f"models/{name}" for name in ours if name.startswith("lan_")}
    shipped |= {"models/SHA256SUMS", "models/lan_mobilefacenet_ferplus.md", "docs/drawn.jpg"}
    private = {"photo.jpg", "photos/me.jpg", "drawn.jpg", "drawn/photos/me.jpg", "answers.csv"}
    private |= {"answers/0.parquet", "clip.mp4", "models/smile.onnx", "models/smile.md"}
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    told = subprocess.run(
        ["git", "check-ignore", "--no-index", *sorted(private | shipped)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(told.stdout.splitlines()) == private


def assert_shortened(example: Any, whole: Any) -> None:  # noqa: ANN401 - JSON
    """Numbers may differ by what other CPUs and the float32 file make of them."""
    if isinstance(example, dict):
        for name, value in example.items():
            assert_shortened(value, whole[name])
    elif isinstance(example, list):
        for value, other in zip(example, whole, strict="..." not in example):
            assert_shortened(value, other)
    elif isinstance(example, float):
        assert example == pytest.approx(whole, abs=0.05 if abs(example) <= 1 else 1.5)
    elif example != "...":
        assert example == whole


def test_the_api_page_is_fresh() -> None:
    assert text_of("docs/api.md") == page(openapi()), "run `make docs`"
