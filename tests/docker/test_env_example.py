from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_env_example_names_every_setting() -> None:
    """The file is what the settings class says; the compose variables are all in it."""
    expected = subprocess.run(
        [sys.executable, "docker/env_example.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (ROOT / ".env.example").read_text() == expected, (
        "run: python docker/env_example.py > .env.example"
    )
