"""Ray on this machine: `make test-bulk`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.printable import as_text

pytestmark = pytest.mark.bulk

PATIENCE_SECONDS = 540
PHOTOS = 60
NO_UTF8 = os.fsdecode(b"\xff.jpg")
WORKER = b"ray::MapWorker"


@pytest.fixture
def photos(tmp_path: Path, portrait: NDArray[np.uint8]) -> Path:
    """Sixty with one face each, one without, one that is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(portrait).save(folder / "0.jpg")
    (folder / NO_UTF8).hardlink_to(folder / "0.jpg")
    for number in range(2, PHOTOS):
        (folder / f"{number}.jpg").hardlink_to(folder / "0.jpg")
    Image.new("RGB", (64, 48)).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


def bulk(photos: Path | str, output: Path | str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service.cli", "bulk", str(photos), "-o", str(output)]
    return subprocess.Popen([*command, "--workers", "2", *flags], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    with process:
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, err  # there is a broken one
    return err


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the actors that hold the networks of this job's own cluster."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = (entry / "cmdline").read_bytes()
            if name.startswith(WORKER) and process.pid in ancestors(int(entry.name)):
                found.append(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        # After the name in brackets: state, parent.
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def assert_each_once(photos: Path, output: Path) -> None:
    rows = pq.read_table(output).to_pylist()
    counts = Counter(row["source"] for row in rows)
    assert counts == dict.fromkeys((as_text(str(path)) for path in photos.iterdir()), 1)
    expressions = Counter(row["expression"] for row in rows)
    assert expressions == {"happiness": PHOTOS, None: 2}
    (broken,) = (row for row in rows if row["error"])
    assert broken["source"] == str(photos / "broken.jpg")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_worker_that_is_killed_loses_nothing(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers"
    process = bulk(photos, output)
    wait_for(lambda: workers_of(process) or process.poll() is not None)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    err = finish(process)
    assert "1 of 62 photos could not be read" in err
    assert "broken.jpg: The bytes are no JPEG" in err
    assert_each_once(photos, output)


def test_job_that_is_killed_goes_on(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers"
    process = bulk(photos, output)
    wait_for(lambda: any(output.glob("*.parquet")) or process.poll() is not None)
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)
    (output / "half.parquet").write_bytes(b"PAR1 half a file")
    finish(bulk(photos, output, "--resume"))
    assert_each_once(photos, output)
    finish(bulk(photos, output, "--resume"))
    assert_each_once(photos, output)


def test_wrong_model_is_one_line_before_ray_starts(photos: Path, tmp_path: Path) -> None:
    err = finish(bulk(photos, tmp_path / "answers", "--model-path", "no-such.onnx"))
    (line,) = err.splitlines()
    assert line.startswith("lan-fer: no-such.onnx: ")


def test_photos_and_answers_may_be_in_a_bucket(photos: Path, tmp_path: Path) -> None:
    # A folder by its address goes the way of a bucket.
    output = tmp_path / "answers"
    bucket = f"file://{photos}"
    said = f"lan-fer: {bucket}: a name in it is no UTF-8, as an address must be; give the folder's"
    assert finish(bulk(bucket, f"file://{output}")) == f"{said} path.\n"
    (photos / NO_UTF8).unlink()
    err = finish(bulk(bucket, f"file://{output}"))
    assert f"{bucket}/broken.jpg: The bytes are no JPEG" in err
    rows = pq.read_table(output).to_pylist()
    assert {row["source"] for row in rows} == {f"file://{path}" for path in photos.iterdir()}
