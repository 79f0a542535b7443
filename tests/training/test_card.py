"""The card says what is true of the data set, the weights and the method at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.expression import ExpressionModel
from service.runtime import SessionSettings
from tests.training.made_up import contract_for, enliven, tiny_lan
from training.card import Assessment, Recipe, write_card
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.evaluation import Evaluation
from training.export import export_onnx
from training.runs import TrainedRun

RIGHT = Evaluation(np.eye(8, dtype=np.float32)[np.arange(40) % 8] + 0.1, np.arange(40) % 8)


@dataclass(frozen=True, eq=False)
class Figures:
    """What was measured: 40 images, all answered rightly, of no turned head."""

    evaluation: Evaluation = RIGHT
    angles: NDArray[np.float64] = field(default_factory=lambda: np.zeros(40))
    temperature: float = 1.25


FIGURES = Figures()


def card(
    folder: Path,
    *,
    dataset: str,
    title: str,
    config: TrainingConfig,
    weights: str,
    start: str = "",
    figures: Figures = FIGURES,
) -> str:
    """The card of a made-up network."""
    network = enliven(tiny_lan(8, fusion=config.fusion))
    contract = contract_for(network, config).model_copy(
        update={
            "dataset": title,
            "protocol": "seven classes; training",
            "licence": "mine",
            "temperature": figures.temperature,
        }
    )
    path = folder / "model.onnx"
    export_onnx(network, contract, path)
    model = ExpressionModel.load(path, SessionSettings("cpu"))
    run = TrainedRun(
        network,
        config,
        {"labels": list(LABELS), "training_images": 1234, "weights": weights, "start": start},
        2,
    )
    assessment = Assessment(model, figures.evaluation, figures.angles)
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


def own_card(folder: Path, **changes: Any) -> str:  # noqa: ANN401
    given = {"config": TrainingConfig(), "weights": "random", **changes}
    return card(folder, dataset="folder", title="own images", **given)


@pytest.mark.parametrize(
    ("freezing", "said"),
    [
        ({}, "Backbone from `random`, all of it trained."),
        # Of 14 epochs the second is exported.
        (
            {"freeze_epochs": 5},
            "trained but for its layers before `res_5_block0`, which stayed as they were.",
        ),
        (
            {"freeze_epochs": 1},
            "trained; its layers before `res_5_block0` were frozen for the first 1 epochs.",
        ),
        ({"freeze_from": 1}, "its layers before `res_5_block0` were frozen after epoch 1."),
        ({"freeze_from": 2}, "Backbone from `random`, all of it trained."),
    ],
)
def test_what_was_frozen_is_what_was_so_up_to_the_exported_epoch(
    tmp_path: Path, freezing: dict[str, int], said: str
) -> None:
    config = TrainingConfig(freeze_before="res_5_block0" if freezing else "", **freezing)  # type: ignore[arg-type]
    assert said in own_card(tmp_path, config=config)


def test_of_turned_heads_the_card_says_what_was_measured(tmp_path: Path) -> None:
    assert "No head here was turned by more than 30 degrees: how much" in own_card(tmp_path)
    angles = np.where(np.arange(40) < 3, 50.0, 0.0)
    right = own_card(tmp_path, figures=Figures(angles=angles))
    assert "Of turned heads there were 3 alone: they may be harder than it seems." in right
    logits = RIGHT.logits.copy()
    logits[0] = np.roll(logits[0], 1)
    evaluation = Evaluation(logits, RIGHT.classes)
    wrong = own_card(tmp_path, figures=Figures(evaluation, angles))
    assert "Accuracy falls as heads turn; the table says how far." in wrong


def test_a_doubtful_temperature_is_told(tmp_path: Path) -> None:
    doubtful = "Mind that the temperature lies at the end of the range searched (0.1 to 10)"
    assert doubtful in own_card(tmp_path, figures=Figures(temperature=0.1))
    assert "Mind that" not in own_card(tmp_path)


def test_classes_without_images_are_not_measured(tmp_path: Path) -> None:
    kept = RIGHT.classes < 7
    figures = Figures(RIGHT.subset(kept), np.zeros(kept.sum()))
    text = own_card(tmp_path, figures=figures)
    assert "| disgust | 5 | 100.0% |" in text
    assert "| contempt | 0 | not measured |" in text


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
