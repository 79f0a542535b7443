"""Heads turned out of the plane: the nose goes one way, the alignment stays, no turn no change."""

from __future__ import annotations

import numpy as np
import pytest

from service.faces.alignment import ARCFACE_TEMPLATE, compose, head_pose
from training.augmentation import Augmentation, sample_turn, turn_grid
from training.turning import MAX_TURN_DEGREES, Turn, _before, _turned, sources

IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])
SIZE = 112


PIXELS = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).astype(np.float32)


def test_no_turn_moves_nothing() -> None:
    assert np.allclose(sources(Turn(0, 0), IDENTITY, SIZE), PIXELS, atol=1e-3)


def test_without_a_turn_the_affine_is_all() -> None:
    affine = np.array([[0.9, 0.1, 3], [-0.1, 0.9, 5]])
    origin = sources(Turn(0, 0.3), affine, SIZE).reshape(-1, 2)
    there = origin @ affine[:, :2].T + affine[:, 2]
    assert np.allclose(there, PIXELS.reshape(-1, 2), atol=1e-2)


@pytest.mark.parametrize("degrees", [-MAX_TURN_DEGREES, -15, 20, MAX_TURN_DEGREES])
@pytest.mark.parametrize("direction", [0.0, 0.4, np.pi / 2])
def test_the_way_back_is_the_inverse(degrees: float, direction: float) -> None:
    points = np.random.default_rng(1).uniform(0, 112, (3000, 2))
    turn = Turn(np.radians(degrees), direction)
    assert np.abs(_before(_turned(points, turn), turn) - points).max() < 0.02


@pytest.mark.parametrize("degrees", [-30, 30])
def test_head_pose_sees_the_turn(degrees: float) -> None:
    turned = _turned(np.array(ARCFACE_TEMPLATE), Turn(np.radians(degrees), 0.0))
    yaw = head_pose(turned).yaw - head_pose(ARCFACE_TEMPLATE).yaw
    assert np.sign(yaw) == np.sign(degrees)
    assert abs(yaw) == pytest.approx(30, abs=10)


def test_a_map_moves_with_its_pixels() -> None:
    grid = np.zeros((7, 7), np.float32)
    grid[3, 3] = 1
    assert np.allclose(turn_grid(grid, sources(Turn(0, 0), IDENTITY, SIZE)), grid, atol=1e-3)
    shifted = compose([[1, 0, 16], [0, 1, 0]], IDENTITY)
    moved = turn_grid(grid, sources(Turn(0, 0), shifted, SIZE))
    assert moved.argmax() == 3 * 7 + 4


def test_half_of_the_heads_are_turned_within_the_limit() -> None:
    rng = np.random.default_rng(2)
    turns = [sample_turn(Augmentation(turn_degrees=25), rng) for _ in range(400)]
    angles = [abs(turn.angle) for turn in turns if turn]
    assert 150 < len(angles) < 250
    assert np.radians(20) < max(angles) <= np.radians(25)
    assert sample_turn(Augmentation(turn_degrees=0), rng) is None
