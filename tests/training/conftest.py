"""Real parts shared by the tests of training: the detector, faces and one exported network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from service.faces.detector import FaceDetector
from service.runtime import SessionSettings
from tests.training.made_up import DETECTOR, FacePictures, face_pictures


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit results need one order of summation; small networks are no slower for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights of a test's networks, the same each time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def detector_path() -> Path:
    if not DETECTOR.is_file():
        pytest.fail(f"{DETECTOR} is missing; run `{sys.executable} -m service.detector_weights`")
    return DETECTOR


@pytest.fixture(scope="session")
def detector(detector_path: Path) -> FaceDetector:
    return FaceDetector.load(detector_path, SessionSettings("cpu"))


@pytest.fixture
def faces(tmp_path: Path) -> FacePictures:
    """Four pictures of one real face and one without, as files."""
    return face_pictures(tmp_path / "pictures")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
