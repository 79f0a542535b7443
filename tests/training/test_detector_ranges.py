"""Measuring the ranges that the detector's 8-bit file is made with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.detector_int8 import RANGES
from tests.training.made_up import DETECTOR, coloured_split
from training.detector_ranges import CANVASES, draw_canvases, measure_ranges


def test_canvases_are_drawn_alike_each_time(tmp_path: Path) -> None:
    paths = coloured_split(tmp_path, 5).paths
    first, second = (list(draw_canvases(paths, 6)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert [canvas.shape for canvas in first] == [(1, 3, h, w) for h, w in CANVASES] * 2
    assert all(-125 < canvas.min() < 0 < canvas.max() < 155 for canvas in first)


def test_what_is_measured_is_what_the_shipped_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.detector_ranges.COUNT", 3)
    ranges, output = tmp_path / "ranges.json", tmp_path / "x.int8.onnx"
    measure_ranges(DETECTOR, coloured_split(tmp_path, 5), ranges, output)
    assert output.stat().st_size < DETECTOR.stat().st_size
    measured, shipped = (json.loads(path.read_text())["data"] for path in (ranges, RANGES))
    assert measured.keys() == shipped.keys()
    assert measured != shipped, "other pictures have other ranges"
