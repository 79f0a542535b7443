"""The card says what is true of the data set, the weights and the method at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.expression import ExpressionModel
from service.runtime import SessionSettings
from tests.training.made_up import contract_for, enliven, tiny_lan
from training.card import Assessment, Recipe, write_card
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.evaluation import Evaluation
from training.export import export_onnx
from training.runs import TrainedRun


def card(
    folder: Path,
    *,
    dataset: str,
    title: str,
    config: TrainingConfig,
    weights: str,
    start: str = "",
) -> str:
    """The card of a made-up network."""
    network = enliven(tiny_lan(8, fusion=config.fusion))
    contract = contract_for(network, config).model_copy(
        update={"dataset": title, "protocol": "seven classes; training", "licence": "mine"}
    )
    path = folder / "model.onnx"
    export_onnx(network, contract, path)
    model = ExpressionModel.load(path, SessionSettings("cpu"))
    classes = np.arange(40) % 8
    logits = np.eye(8, dtype=np.float32)[classes] + 0.1
    run = TrainedRun(
        network,
        config,
        {"labels": list(LABELS), "training_images": 1234, "weights": weights, "start": start},
        2,
    )
    assessment = Assessment(model, Evaluation(logits, classes), np.zeros(40))
    write_card(folder / "model.md", assessment, Recipe(run, None, None, dataset))
    return " ".join((folder / "model.md").read_text().split())


def test_ferplus_has_its_own_words(tmp_path: Path) -> None:
    text = card(
        tmp_path,
        dataset="ferplus",
        title="FERPlus",
        config=TrainingConfig(),
        weights="mobilefacenet_ms1m.safetensors",
    )
    assert "validation split of FERPlus (seven classes)" in text
    assert "byte for byte the same" in text
    assert "48-pixel grey faces" in text
    assert "| images (FER2013) | research |" in text
    assert "| this model | mine |" in text
    assert "pretrained face-recognition backbone" in text


def test_a_start_with_its_own_backbone_is_named(tmp_path: Path) -> None:
    text = card(
        tmp_path,
        dataset="rafdb",
        title="RAF-DB",
        config=TrainingConfig(),
        weights="",
        start="shipped.onnx",
    )
    assert "Backbone from `shipped.onnx`" in text
    assert "features of the network that it started from (`shipped.onnx`)" in text
    assert "| network that it started from (shipped.onnx) | its own |" in text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TrainingConfig(fusion="none", alpha=0), "The backbone alone, without attention"),
        (TrainingConfig(alpha=0), "Fusion add, without guidance (alpha 0)"),
        (TrainingConfig(), "features of the backbone as it began"),
    ],
)
def test_other_data_are_not_called_ferplus(
    tmp_path: Path, config: TrainingConfig, said: str
) -> None:
    text = card(tmp_path, dataset="rafdb", title="RAF-DB", config=config, weights="random")
    assert said in text
    assert "evaluate --dataset rafdb --data DATA" in text
    assert "The training pictures are those of RAF-DB" in text
    for word in ("FERPlus", "FER2013", "FER+", "majority", "ten people", "MS-Celeb", "byte for"):
        assert word not in text
