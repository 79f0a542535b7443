"""Two replicas behind nginx on one machine: throughput against one, and one killed under load.

    python -m benchmarks.replicas [--seconds 15] [--clients 8]

Each replica has a core of its own (the first two of those this process may use), nginx and the
clients run beside them on any. A client whose photo got no reply, or a 5xx, sends it once more.
Needs nginx (Debian: apt-get install nginx-light). Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import skimage.data
from PIL import Image

PATIENCE_SECONDS = 120.0
RETRY_SECONDS = 0.2
NO_REPLY = 0
NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 32m;
    client_body_buffer_size 1m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream replicas {{
        least_conn;
        {servers}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            # A replica that cannot be reached is passed over. One that took a photo and died is not
            # asked again by nginx, but by the client, which alone knows that it may.
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


@dataclass
class Outcome:
    """What became of the photos."""

    first: Counter[int] = field(default_factory=Counter)
    """Replies to the first try by status; 0: none."""
    again: Counter[int] = field(default_factory=Counter)
    """Replies to the second try, of those that needed one."""
    answered: int = 0


def free_port() -> int:
    """A TCP port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until /health/ready answers with 200."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{url} ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit(f"{url} did not become ready")


@contextmanager
def replica(core: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service with one core of its own; its URL and process."""
    port, mine = free_port(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # the child has it from its start, all threads alike
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    os.sched_setaffinity(0, mine)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@contextmanager
def nginx(urls: Sequence[str]) -> Iterator[str]:
    """A proxy before the replicas at `urls`; its URL."""
    port = free_port()
    servers = "\n        ".join(
        f"server {url.removeprefix('http://')} max_fails=1 fail_timeout=2s;" for url in urls
    )
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(NGINX.format(folder=folder, servers=servers, port=port))
        process = subprocess.Popen(
            ["nginx", "-c", configuration, "-p", folder, "-e", f"{folder}/error.log"]
        )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


async def post(session: aiohttp.ClientSession, url: str, photo: bytes) -> int:
    """The reply's status; NO_REPLY where the connection broke."""
    headers = {"Content-Type": "image/jpeg"}
    try:
        async with session.post(f"{url}/predict", data=photo, headers=headers) as reply:
            await reply.read()
            return reply.status
    except aiohttp.ClientError:
        return NO_REPLY


async def load(
    url: str,
    photo: bytes,
    *,
    clients: int,
    seconds: float,
    kill: subprocess.Popen[bytes] | None = None,
) -> Outcome:
    """`clients` that never pause; `kill` is killed (SIGKILL) when half the time is over."""
    outcome, end = Outcome(), time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            status = await post(session, url, photo)
            outcome.first[status] += 1
            if status == NO_REPLY or status >= 500:
                await asyncio.sleep(RETRY_SECONDS)
                status = await post(session, url, photo)
                outcome.again[status] += 1
            outcome.answered += status == 200

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(client(session)) for _ in range(clients)]
        if kill is not None:
            await asyncio.sleep(seconds / 2)
            kill.kill()
        await asyncio.gather(*tasks)
    return outcome


def photo_of_a_face() -> bytes:
    """A JPEG of 512 x 512 pixels with one face."""
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(clients: int, seconds: float) -> dict[str, object]:
    """All three loads."""
    photo, cores = photo_of_a_face(), sorted(os.sched_getaffinity(0))[:2]

    def rate(urls: Sequence[str]) -> float:
        with nginx(urls) as proxy:
            outcome = asyncio.run(load(proxy, photo, clients=clients, seconds=seconds))
        return round(outcome.answered / seconds, 2)

    with ExitStack() as stack:
        (one, _), (two, second) = [stack.enter_context(replica(core)) for core in cores]
        rates = {1: rate([one]), 2: rate([one, two])}
        with nginx([one, two]) as proxy:
            killed = asyncio.run(load(proxy, photo, clients=clients, seconds=seconds, kill=second))
    lost = sum(killed.first.values()) - killed.first[200]
    return {
        "photos_per_second": rates,
        "times_as_many": round(rates[2] / rates[1], 2),
        "killed_under_load": {
            "sent": sum(killed.first.values()),
            "first_try": dict(killed.first),
            "lost_with_the_replica": lost,
            "second_try": dict(killed.again),
        },
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    print(json.dumps(measure(options.clients, options.seconds), indent=2))


if __name__ == "__main__":
    main()
