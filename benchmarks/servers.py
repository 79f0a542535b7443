"""Starts the service or the baseline as its own process, and reads what it costs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_SECONDS = 120.0
MEBIBYTE = 1024 * 1024
SERVICE, BASELINE = "service", "baseline"
STAGES = "lan_fer_stage_duration_seconds_sum"
# The service's own command, so that its start is timed as a user meets it.
COMMANDS = {
    SERVICE: [sys.executable, "-m", "service.cli", "serve"],
    BASELINE: [sys.executable, "-m", "benchmarks.baseline.app"],
}


@dataclass(frozen=True)
class Measured:
    """One load on one server."""

    load: dict[str, Any]
    """What benchmarks.load printed."""
    cpu_ms_per_photo: float
    """CPU time of the server's processes for an answered photo."""
    rss_mb: float
    """Resident memory after the load."""
    peak_mb: float
    """Most resident memory since the start."""
    stage_ms: dict[str, float]
    """Of the service: mean wall-clock time of a photo in each stage; stages overlap in a crowd."""


@dataclass(frozen=True, eq=False)
class RunningServer:
    """A server that is ready."""

    url: str
    process: psutil.Process
    seconds_to_ready: float

    def rss_mb(self) -> float:
        """Resident memory, MiB; pages that processes share count in each."""
        return sum(p.memory_info().rss for p in whole(self.process)) / MEBIBYTE

    def peak_mb(self) -> float:
        """Most resident memory of each process so far (Linux), MiB; else what it is now."""
        statuses = [Path(f"/proc/{p.pid}/status") for p in whole(self.process)]
        if not all(status.is_file() for status in statuses):
            return self.rss_mb()
        lines = (line for status in statuses for line in status.read_text().splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        times = [p.cpu_times() for p in whole(self.process)]
        return float(sum(t.user + t.system for t in times))

    def load(self, photos: Path, *options: object) -> Measured:
        """Run benchmarks.load against it."""
        command = [sys.executable, "-m", "benchmarks.load", "--url", self.url]
        before, stages = self.cpu_seconds(), self._stage_seconds()
        run = subprocess.run(
            [*command, "--photos", str(photos), *map(str, options)],
            capture_output=True,
            text=True,
            check=True,
        )
        spent = self.cpu_seconds() - before
        summary = json.loads(run.stdout)
        share = spent * 1000 / max(1, summary["answered"])
        return Measured(
            load=summary,
            cpu_ms_per_photo=round(share, 2),
            rss_mb=round(self.rss_mb(), 1),
            peak_mb=round(self.peak_mb(), 1),
            stage_ms={
                stage: round(1000 * (seconds - stages.get(stage, 0.0)) / summary["answered"], 2)
                for stage, seconds in self._stage_seconds().items()
                if summary["answered"]
            },
        )

    def _stage_seconds(self) -> dict[str, float]:
        """Time spent in each stage so far, over all photos; empty where no metrics are served."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_SECONDS) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError:
            return {}
        return {
            sample.labels["stage"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == STAGES
        }


def whole(process: psutil.Process) -> list[psutil.Process]:
    """A server's processes: the one that was started, and those that it has started."""
    return [process, *process.children(recursive=True)]


@contextmanager
def running(kind: str, arguments: list[str]) -> Iterator[RunningServer]:
    """The service or the baseline on a free port of loopback, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*COMMANDS[kind], "--port", str(port), *arguments], stdout=log, stderr=log
        )
        try:
            _wait_until_ready(url, process)
            yield RunningServer(url, psutil.Process(process.pid), time.perf_counter() - started)
        finally:
            process.terminate()
            if process.wait(PATIENCE_SECONDS) not in (0, -signal.SIGTERM):
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.perf_counter() + PATIENCE_SECONDS
    while time.perf_counter() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise SystemExit("the server did not become ready")
