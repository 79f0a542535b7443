"""The real stack on a real Docker engine: built, started, used and taken down again.

Skips with the reason where there is no engine; with REQUIRE_ENGINE=1 that is a failure.
`make test-compose` runs it so.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import skimage
from PIL import Image

ROOT = Path(__file__).parents[2]
PHOTO = Path(skimage.__file__).parent / "data" / "astronaut.png"
DEADLINE_SECONDS = 90.0
# The project promises an image under 500 MB on a base of 192.
MAX_ADDED_BYTES = 308_000_000

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Stack:
    """A running compose project of its own."""

    project: str
    service_url: str
    prometheus_url: str
    environment: dict[str, str]

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(
            "docker", "compose", "--ansi", "never", *arguments, env=self.environment, check=check
        )

    def in_service(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python inside the service's container."""
        return self.compose("exec", "-T", "lan-fer", "python", "-c", code, check=False)


def run(
    *command: str, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if check and result.returncode != 0:
        pytest.fail(f"{' '.join(command)}: exit code {result.returncode}\n{tail(result)}")
    return result


def tail(result: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((result.stdout + result.stderr).splitlines()[-60:])


def no_engine(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_ENGINE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def base_images() -> set[str]:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()
    built_on = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    return {*built_on, *re.findall(r"^ +image: (\S+)", compose, re.MULTILINE)}


@pytest.fixture(scope="module")
def engine() -> None:
    """A Docker engine with compose, and the base images at hand or to be had."""
    if shutil.which("docker") is None:
        no_engine("no docker client is installed")
    for plugin in ("compose", "buildx"):
        if run("docker", plugin, "version", check=False).returncode != 0:
            no_engine(f"the docker client has no {plugin} plugin")
    info = run("docker", "info", check=False)
    if info.returncode != 0:
        no_engine(f"no Docker engine answers: {tail(info).splitlines()[-1]}")
    for image in sorted(base_images()):
        if run("docker", "image", "inspect", image, check=False).returncode != 0:
            pull = run("docker", "pull", "--quiet", image, check=False)
            if pull.returncode != 0:
                no_engine(f"base image {image} is neither here nor to be had: {tail(pull)}")


@pytest.fixture(scope="module")
def stack(engine: None) -> Iterator[Stack]:
    service_port, prometheus_port = free_ports(2)
    project = f"lan-fer-test-{secrets.token_hex(4)}"
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": project,
        "LAN_FER_PORT": str(service_port),
        "PROMETHEUS_PORT": str(prometheus_port),
        "REVISION": "of-the-test",
    }
    started = Stack(
        project=project,
        service_url=f"http://127.0.0.1:{service_port}",
        prometheus_url=f"http://127.0.0.1:{prometheus_port}",
        environment=environment,
    )
    try:
        up = started.compose("up", "--build", "--wait", "--wait-timeout", "300", check=False)
        if up.returncode != 0:
            logs = started.compose("logs", "--tail", "50", "lan-fer", check=False)
            pytest.fail(f"the stack did not come up:\n{tail(up)}\n{logs.stdout}")
        yield started
    finally:
        started.compose("down", "--volumes", "--rmi", "local", "--timeout", "5", check=False)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def query(stack: Stack, expression: str) -> float:
    """The value Prometheus has for `expression`; 0 where it has none."""
    reply = httpx.get(f"{stack.prometheus_url}/api/v1/query", params={"query": expression})
    result = reply.raise_for_status().json()["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.5)
    pytest.fail(f"{what}: not within {DEADLINE_SECONDS:g} s")


def inspect(container: str, template: str) -> Any:  # noqa: ANN401 - JSON of any shape
    return json.loads(
        run("docker", "inspect", "--format", f"{{{{json {template}}}}}", container).stdout
    )


def service_container(stack: Stack) -> str:
    return stack.compose("ps", "--all", "--quiet", "lan-fer").stdout.strip()


def test_reads_a_photo(stack: Stack) -> None:
    reply = post_photo(stack.service_url)
    assert reply.status_code == 200, reply.text
    (face,) = reply.json()["faces"]
    box, nose = face["box"], face["landmarks"]["nose"]
    assert box["x1"] < nose[0] < box["x2"]
    assert box["y1"] < nose[1] < box["y2"]
    assert face["expression"]["label"] == "happiness"


def test_prometheus_scrapes_the_service(stack: Stack) -> None:
    httpx.get(f"{stack.service_url}/health/live").raise_for_status()
    wait_until(lambda: query(stack, 'up{job="lan-fer"}') == 1, "the target is up")
    counted = "sum(lan_fer_http_requests_total)"
    wait_until(lambda: query(stack, counted) >= 1, "the request is counted")


def test_the_container_can_change_nothing(stack: Stack) -> None:
    assert stack.in_service("import os; assert os.getuid() and os.getgid()").returncode == 0
    for folder in ("/", "/opt/lan-fer", "/opt/lan-fer/models", "/home"):
        write = stack.in_service(f"open('{folder}/x', 'w')")
        assert "Error" in write.stderr, folder
    status = stack.in_service("print(open('/proc/self/status').read())").stdout
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_the_image_holds_neither_torch_nor_an_installer(stack: Stack) -> None:
    code = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])".format(
        ["torch", "training", "pip", "setuptools", "retinaface"]
    )
    assert stack.in_service(code).stdout.strip() == "[]"


def test_the_image_says_what_it_is(stack: Stack) -> None:
    labels = inspect(service_container(stack), ".Config.Labels")
    assert labels["org.opencontainers.image.revision"] == "of-the-test"
    assert labels["org.opencontainers.image.licenses"] == "MIT"


def test_starts_without_any_network(stack: Stack) -> None:
    image = inspect(service_container(stack), ".Image")
    name = f"{stack.project}-alone"
    run("docker", "run", "--detach", "--name", name, "--network", "none", "--read-only", image)
    try:
        wait_until(
            lambda: inspect(name, ".State.Health.Status") == "healthy",
            "healthy without a network",
        )
    finally:
        run("docker", "rm", "--force", name)


def kill_from_outside(container: str, image: str) -> None:
    """SIGKILL to the server: not by `docker kill`, after which an engine restarts nothing."""
    pid = inspect(container, ".State.Pid")
    shell = ("docker", "run", "--rm", "--privileged", "--pid", "host", "--user", "0")
    run(*shell, "--network", "none", "--entrypoint", "sh", image, "-c", f"kill -9 {pid}")


def post_photo(url: str, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{url}/predict",
        content=PHOTO.read_bytes(),
        headers={"content-type": "image/png", **headers},
        timeout=60,
    )


def test_a_killed_server_comes_back(stack: Stack) -> None:
    container = service_container(stack)
    before = inspect(container, ".RestartCount")
    kill_from_outside(container, inspect(container, ".Image"))
    wait_until(lambda: inspect(container, ".RestartCount") > before, "restarted by the engine")
    wait_until(
        lambda: inspect(container, ".State.Health.Status") == "healthy", "healthy after the kill"
    )
    assert post_photo(stack.service_url).status_code == 200


def bombs() -> tuple[bytes, bytes]:
    """Small files of large images: as large as is allowed, and far larger by its own word."""
    allowed, claimed = io.BytesIO(), io.BytesIO()
    Image.new("L", (8000, 8000), 128).save(allowed, "PNG")
    Image.new("RGB", (8, 8)).save(claimed, "GIF")
    head = claimed.getvalue()
    return allowed.getvalue(), head[:6] + struct.pack("<HH", 65535, 65535) + head[10:]


def test_hostile_images_stay_within_the_memory_limit(stack: Stack) -> None:
    container = service_container(stack)
    restarts = inspect(container, ".RestartCount")

    def send(bomb: bytes) -> int:
        return httpx.post(
            f"{stack.service_url}/predict",
            content=bomb,
            headers={"content-type": "image/png"},
            timeout=120,
        ).status_code

    with ThreadPoolExecutor(16) as clients:
        largest, refused = [[clients.submit(send, bomb) for _ in range(8)] for bomb in bombs()]
    # Read, or turned away at once or in time; what is too large by its own word is never decoded.
    assert {reply.result() for reply in largest} <= {200, 429, 504}
    assert {reply.result() for reply in refused} <= {413, 429, 504}
    assert inspect(container, ".State.OOMKilled") is False
    assert inspect(container, ".RestartCount") == restarts
    assert post_photo(stack.service_url).status_code == 200


def test_the_image_adds_little_to_its_base(stack: Stack) -> None:
    size = inspect(inspect(service_container(stack), ".Image"), ".Size")
    (base,) = [image for image in base_images() if image.startswith("python:")]
    assert size - inspect(base, ".Size") < MAX_ADDED_BYTES


def test_a_stop_under_load_loses_no_reply(stack: Stack) -> None:
    """Last: whatever the server took, its client got the answer of; and it ends by itself."""
    container = service_container(stack)
    # Its own address: in front of a published port, the engine's proxy takes connections, too.
    networks = inspect(container, ".NetworkSettings.Networks")
    (address,) = [network["IPAddress"] for network in networks.values()]
    got: dict[str, int] = {}
    stopped = threading.Event()

    def client(number: int) -> None:
        for count in itertools.count():
            if stopped.is_set():
                return
            request_id = f"load-{number}-{count}"
            try:
                reply = post_photo(f"http://{address}:8000", **{"X-Request-ID": request_id})
                got[request_id] = reply.status_code
            except httpx.TransportError:
                time.sleep(0.1)  # not taken; the log must not know of it

    with ThreadPoolExecutor(6) as clients:
        for number in range(6):
            clients.submit(client, number)
        wait_until(lambda: len(got) >= 12, "photos are answered")
        stack.compose("stop", "lan-fer")
        stopped.set()
    assert inspect(container, ".State.ExitCode") == 0
    logs = run("docker", "logs", container)
    taken = dict(re.findall(r"request_id=(load-\S+) .*?status=(\d+)", logs.stdout + logs.stderr))
    assert len(taken) >= 12
    assert {request_id: str(got.get(request_id)) for request_id in taken} == taken
    assert set(got.values()) <= {200, 429, 503}
