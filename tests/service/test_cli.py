from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnx
import onnxruntime
import pytest

from service.settings import Settings
from tests.service.serving import wait_until

PATIENCE_SECONDS = 60


@contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`lan-fer serve` as a process of its own, with the lines it has logged so far."""
    command = [sys.executable, "-m", "service.cli", "serve", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines.append(line)
                if "event=ready" in line:
                    break
            reader = threading.Thread(target=lines.extend, args=(process.stderr,))
            reader.start()
            yield process, lines
            process.wait(PATIENCE_SECONDS)
            reader.join()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serves_until_it_is_told_to_stop(number: signal.Signals, portrait_jpeg: bytes) -> None:
    with serving("--port", "0") as (process, lines):
        found = re.search(r"url=(http://127\.0\.0\.1:\d+)", lines[-1])
        assert found, lines
        response = httpx.post(
            f"{found[1]}/predict",
            files={"file": ("name\n level=error.jpg", portrait_jpeg)},
            headers={"x-request-id": "abc-123", "user-agent": "x\tlevel=error"},
            trust_env=False,
            timeout=PATIENCE_SECONDS,
        )
        assert len(response.json()["faces"]) == 1
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0
    # Nothing else to say, and nothing from the client in it but the checked id.
    loaded, ready, access = lines
    assert 'event="networks loaded" model=lan-mobilefacenet-ferplus' in loaded
    assert "event=ready" in ready
    assert re.search(r" request_id=abc-123 method=POST route=/predict status=200 ", access)
    assert " faces=1 " in access
    assert "error" not in access


def test_ctrl_c_twice_leaves_no_traceback() -> None:
    with serving("--port", "0") as (process, lines):
        found = re.search(r"url=http://(127\.0\.0\.1):(\d+)", lines[-1])
        assert found
        with socket.create_connection((found[1], int(found[2]))) as waits:
            waits.sendall(b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n")
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0
    assert not [line for line in lines if "Traceback" in line]


def test_nohup_is_respected() -> None:
    command = ["nohup", sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("event=ready" in line for line in process.stderr)
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="which files are open is read in /proc")
def test_serves_without_standard_streams() -> None:
    """Their numbers are not those of sockets then, whatever a library writes to them."""
    script = f"exec {sys.executable} -m service.cli serve --port 0 <&- >&- 2>&-"
    with subprocess.Popen(["bash", "-c", script]) as process:
        try:
            status = Path(f"/proc/{process.pid}/status")
            wait_until(lambda: bool(minded(status.read_text()) & 1 << signal.SIGTERM - 1))
            files = [Path(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
            assert {str(file.readlink()) for file in files} == {os.devnull}
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="which signals are minded is read in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_it_starts_it_ends_well(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        # Python minds SIGINT by itself; a process that is the first of a container, nothing else.
        while not minded(status.read_text()) & 1 << signal.SIGTERM - 1:
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert errors == ""


def minded(status: str) -> int:
    found = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    assert found
    return int(found[1], 16)


def start_and_fail(*flags: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lan-fer: ")
    return line


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 64])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    assert "cannot listen on" in start_and_fail("--host", host)


@pytest.mark.parametrize("flag", ["--model-path", "--detector-path"])
@pytest.mark.parametrize("path", ["", "/", "/dev/zero", f"/tmp/{'a' * 300}.onnx"])
def test_a_model_that_is_no_file_is_one_line(flag: str, path: str) -> None:
    assert "cannot read the model file" in start_and_fail(flag, path)


@pytest.mark.parametrize("flag", ["--model-path", "--detector-path"])
def test_missing_model_is_one_line(flag: str) -> None:
    assert "no-such.onnx" in start_and_fail(flag, "no-such.onnx")


def test_model_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(Settings().model_path.read_bytes()[:10_000])
    assert str(path) in start_and_fail("--model-path", str(path))


def test_model_without_contract_is_one_line(tmp_path: Path) -> None:
    model = onnx.load(Settings().model_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    assert "contract" in start_and_fail("--model-path", str(tmp_path / "bare.onnx"))


def test_gpu_that_is_missing_is_one_line() -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has TensorRT")
    assert "tensorrt" in start_and_fail("--provider", "tensorrt")


def test_address_that_cannot_be_had_is_one_line() -> None:
    assert "192.0.2.1" in start_and_fail("--host", "192.0.2.1")
    assert "no.such.host.invalid" in start_and_fail("--host", "no.such.host.invalid")


def test_port_that_is_taken_is_one_line_that_says_how_to_have_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = start_and_fail("--port", str(port))
    assert line.startswith(f"lan-fer: cannot listen on 127.0.0.1 port {port}: Address already in")
    assert "--port or LAN_FER_PORT" in line


def test_wrong_setting_is_one_line() -> None:
    assert "LAN_FER_MAX_FACES" in start_and_fail("--max-faces", "none")


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("lan-fer")
    assert os.access(script, os.X_OK)
