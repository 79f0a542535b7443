"""The mean of a run's weights and an exported file's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.made_up import a_lan, contract_for, logits, some_images
from training.averaging import averaged
from training.backbones import CheckpointError
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.export import export_onnx
from training.recovery import fold
from training.runs import TrainedRun


def a_run(seed: int, fusion: str = "add") -> TrainedRun:
    config = TrainingConfig(fusion=fusion)  # type: ignore[arg-type]
    return TrainedRun(a_lan(config, seed), config, {"labels": list(LABELS)}, epoch=1)


def file_of(run: TrainedRun, path: Path) -> Path:
    export_onnx(run.network, contract_for(run.network, run.config), path)
    return path


def test_folding_changes_no_answer() -> None:
    images = some_images(4)
    network = a_run(1).network
    torch.testing.assert_close(
        logits(fold(network), images), logits(network, images), atol=1e-4, rtol=1e-4
    )


def test_a_run_averaged_with_itself_answers_as_before(tmp_path: Path) -> None:
    images = some_images(4)
    run = a_run(1)
    same = averaged(run, file_of(run, tmp_path / "model.onnx"))
    torch.testing.assert_close(
        logits(same.network, images), logits(run.network, images), atol=1e-4, rtol=1e-4
    )


def test_weights_are_the_mean_and_the_origin_is_kept(tmp_path: Path) -> None:
    one, other = a_run(1), a_run(2)
    mean = averaged(one, file_of(other, tmp_path / "other.onnx"))
    own, theirs = fold(one.network).state_dict(), fold(other.network).state_dict()
    for name, value in mean.network.state_dict().items():
        if value.is_floating_point():
            expected = (own[name] + theirs[name]) / 2
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
    assert mean.provenance["averaged_with"].startswith("other.onnx (SHA-256 ")
    assert "averaged_with" not in one.provenance


def test_classes_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    one, other = a_run(1), a_run(2)
    turned = a_run(2).network
    turned.reorder(LABELS, LABELS[::-1])
    contract = contract_for(turned, other.config).model_copy(update={"labels": LABELS[::-1]})
    export_onnx(turned, contract, tmp_path / "turned.onnx")
    images = some_images(4)
    mean = averaged(one, tmp_path / "turned.onnx")
    expected = averaged(one, file_of(other, tmp_path / "other.onnx"))
    torch.testing.assert_close(
        logits(mean.network, images), logits(expected.network, images), atol=1e-4, rtol=1e-4
    )


def test_networks_of_two_kinds_have_no_mean(tmp_path: Path) -> None:
    path = file_of(a_run(2, "concat"), tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="another backbone, fusion or labels"):
        averaged(a_run(1), path)
