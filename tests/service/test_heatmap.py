"""The heat map sits where its grid says and colours mean what they should."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.heatmap import heat_overlay, normalise_grid, paint_heat, smooth_heat

SIZE = 112
CELL = SIZE / 7


def one_cell(row: int, column: int, value: float = 1.0) -> NDArray[np.float32]:
    grid = np.zeros((7, 7), np.float32)
    grid[row, column] = value
    return grid


def centre_of_mass(heat: NDArray[np.generic]) -> tuple[float, float]:
    """Row and column, measured from the edge of the image."""
    rows, columns = np.indices(heat.shape) + 0.5
    total = float(heat.sum())
    return float((rows * heat).sum() / total), float((columns * heat).sum() / total)


@pytest.mark.parametrize(("row", "column"), [(1, 1), (3, 3), (2, 5), (5, 4)])
def test_a_cell_lies_at_its_centre_on_the_crop(row: int, column: int) -> None:
    heat = smooth_heat(one_cell(row, column), SIZE)
    expected = ((row + 0.5) * CELL, (column + 0.5) * CELL)
    assert centre_of_mass(heat) == pytest.approx(expected, abs=0.1)
    peak_row, peak_column = np.unravel_index(int(heat.argmax()), heat.shape)
    assert abs(peak_row + 0.5 - expected[0]) <= 1
    assert abs(peak_column + 0.5 - expected[1]) <= 1


@pytest.mark.parametrize("size", [1, 7, 48, 112, 224])
def test_enlarging_keeps_a_constant_and_the_range(size: int) -> None:
    np.testing.assert_allclose(smooth_heat(np.full((7, 7), 0.3, np.float32), size), 0.3, atol=1e-6)
    grid = np.random.default_rng(0).random((7, 7), dtype=np.float32)
    heat = smooth_heat(grid, size)
    assert heat.shape == (size, size)
    assert heat.dtype == np.float32
    assert grid.min() <= heat.min()
    assert heat.max() <= grid.max()


def test_attention_is_absolute_and_evidence_is_relative_to_its_peak() -> None:
    grid = one_cell(0, 0, 0.5) - one_cell(1, 1, 0.25)
    np.testing.assert_array_equal(normalise_grid(grid, signed=False), grid.clip(0))
    np.testing.assert_array_equal(normalise_grid(grid, signed=True), grid * 2)
    np.testing.assert_array_equal(normalise_grid(3 * grid, signed=True), grid * 2)


@pytest.mark.parametrize("signed", [True, False])
def test_grids_of_zeros_or_of_no_numbers_leave_the_crop_alone(signed: bool) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for grid in (np.zeros((7, 7), np.float32), np.full((7, 7), np.nan, np.float32)):
        np.testing.assert_array_equal(heat_overlay(crop, grid, signed=signed), crop)


@pytest.mark.parametrize("signed", [True, False])
def test_the_overlay_is_new_and_keeps_shape_and_type(signed: bool) -> None:
    crop = np.full((SIZE, SIZE, 3), 90, np.uint8)
    crop.setflags(write=False)
    overlay = heat_overlay(crop, one_cell(3, 3), signed=signed)
    assert overlay.shape == crop.shape
    assert overlay.dtype == np.uint8
    changed = np.abs(overlay.astype(int) - 90).sum(axis=2)
    np.testing.assert_allclose(centre_of_mass(changed), (SIZE / 2, SIZE / 2), atol=1.0)
    assert changed[:16].max() == 0  # away from the cell the photo is untouched


def test_more_attention_is_lighter_and_never_darker_than_less() -> None:
    level = np.linspace(0, 1, 256, dtype=np.float32)[np.newaxis]
    black = np.zeros((1, 256, 3), np.uint8)
    painted = paint_heat(black, level, np.ones_like(level), signed=False).astype(float)
    lightness = painted @ [0.2126, 0.7152, 0.0722]
    assert np.diff(lightness[0]).min() > -1.0  # rounding
    assert lightness[0, 0] == 0
    assert lightness[0, -1] > 150


def test_evidence_for_is_red_against_is_blue_and_both_weigh_the_same() -> None:
    level = np.linspace(-1, 1, 257, dtype=np.float32)[np.newaxis]
    grey = np.full((1, 257, 3), 128, np.uint8)
    painted = paint_heat(grey, level, np.ones_like(level), signed=True).astype(float)[0]
    red, blue = painted[:, 0], painted[:, 2]
    assert (red[-40:] > blue[-40:] + 40).all()
    assert (blue[:40] > red[:40] + 40).all()
    np.testing.assert_array_equal(painted[128], 128)
    lightness = painted @ [0.2126, 0.7152, 0.0722]
    np.testing.assert_allclose(lightness, lightness[::-1], atol=14)


def test_weight_fades_the_heat_out() -> None:
    pixels = np.full((1, 3, 3), 100, np.uint8)
    heat = np.ones((1, 3), np.float32)
    weight = np.array([[0.0, 0.5, 1.0]], np.float32)
    change = np.abs(paint_heat(pixels, heat, weight, signed=False).astype(int) - 100).sum(axis=2)
    assert change[0, 0] == 0
    assert change[0, 1] == pytest.approx(change[0, 2] / 2, abs=3)
