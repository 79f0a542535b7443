"""A network that cannot be used is refused at the start, with one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.errors import StartupError
from service.pipeline import load_networks
from service.settings import Settings, load_settings
from tests.service.serving import assert_problem, starting, wait_until

Change = Callable[[onnx.ModelProto], None]


def with_nan_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.size > 1:
            broken = np.full_like(weights, np.nan)
            tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))


def without_contract(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def with_broken_contract(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        entry.value = entry.value.replace("labels", "lables")


def with_too_few_labels(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"neutral",', "", 1).replace('"neutral", ', "", 1)


def with_other_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[1:]


def start_error(**settings: Path) -> str:
    """The one line of a start that fails, of a server that goes on to answer 503."""
    reported: list[StartupError | None] = []
    with (
        starting(load_settings(**settings), load_networks, reported.append) as server,
        server.client() as client,
    ):
        wait_until(lambda: bool(reported))
        assert_problem(client.get("/health/ready"), 503, "unavailable")
    (error,) = reported
    assert isinstance(error, StartupError)
    assert "\n" not in error.detail
    return error.detail


@pytest.mark.parametrize(
    ("setting", "change", "reason"),
    [
        ("model_path", with_nan_weights, "NaN"),
        ("model_path", without_contract, "contract"),
        ("model_path", with_broken_contract, "labels"),
        ("model_path", with_too_few_labels, "label"),
        ("model_path", with_other_outputs, "outputs"),
        ("detector_path", with_nan_weights, "NaN"),
        ("detector_path", with_other_outputs, "outputs"),
    ],
)
def test_network_that_is_unsound_is_refused(
    setting: str, change: Change, reason: str, tmp_path: Path
) -> None:
    model = onnx.load(getattr(Settings(), setting))
    change(model)
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    line = start_error(**{setting: path})
    assert reason in line
    assert str(path) in line


@pytest.mark.parametrize("setting", ["model_path", "detector_path"])
@pytest.mark.parametrize("kept", [0.0, 1e-4, 0.5, 0.999])
def test_file_that_is_cut_off_is_refused(setting: str, kept: float, tmp_path: Path) -> None:
    whole = getattr(Settings(), setting).read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(kept * len(whole))])
    assert str(path) in start_error(**{setting: path})


@pytest.mark.parametrize("setting", ["model_path", "detector_path"])
def test_file_that_is_missing_or_no_file_is_refused(setting: str, tmp_path: Path) -> None:
    assert "none.onnx" in start_error(**{setting: tmp_path / "none.onnx"})
    assert str(tmp_path) in start_error(**{setting: tmp_path})


def test_networks_that_are_swapped_are_refused() -> None:
    settings = Settings()
    line = start_error(model_path=settings.detector_path, detector_path=settings.model_path)
    assert ".onnx" in line
