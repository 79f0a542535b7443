"""Where the system allows few open files, clients are told so, and the log says why."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest

from tests.service.serving import PATIENCE_SECONDS

if sys.platform == "win32":
    pytest.skip("Windows has no limit of open files", allow_module_level=True)
import resource

CLIENTS = 200


@pytest.mark.parametrize("files", [64, 200])
def test_as_many_connections_are_taken_as_files_allow(files: int) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]

    def allow_few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=allow_few_files
    ) as process:
        assert process.stderr is not None
        try:
            said = [process.stderr.readline()]
            while "event=ready" not in said[-1]:
                assert said[-1], "it ended"
                said.append(process.stderr.readline())
            found = re.search(r"url=http://127\.0\.0\.1:(\d+)", said[-1])
            assert found, said
            address = ("127.0.0.1", int(found[1]))
            with ExitStack() as stack:
                clients = [
                    stack.enter_context(socket.create_connection(address, PATIENCE_SECONDS))
                    for _ in range(CLIENTS)
                ]
                assert clients[-1].recv(12) == b"HTTP/1.1 503"
                clients[0].sendall(b"GET /health/ready HTTP/1.1\r\nHost: here\r\n\r\n")
                assert clients[0].recv(12) == b"HTTP/1.1 200"
            url = f"http://127.0.0.1:{address[1]}/health/ready"
            assert httpx.get(url, trust_env=False, timeout=PATIENCE_SECONDS).status_code == 200
        finally:
            process.kill()
    warnings = [line for line in said if "level=warning" in line]
    assert len(warnings) == 1
    assert f"{files} are allowed" in warnings[0]
