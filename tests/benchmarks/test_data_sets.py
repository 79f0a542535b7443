"""The benchmarks that read FERPlus say in one line where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import blur, service_accuracy

ROOT = Path(__file__).resolve().parents[2]
MAINS = {"blur": blur.main, "service_accuracy": service_accuracy.main}
PATIENCE_SECONDS = 120


@pytest.mark.parametrize("name", MAINS)
def test_missing_data_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MAINS[name](["--data", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'FER2013Valid' / 'label.csv'}: no such file")
    assert out == ""


@pytest.mark.parametrize("name", MAINS)
def test_missing_data_is_the_exit_code_of_the_script(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--data", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
