"""A run's best checkpoint -> measured, calibrated and exported model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.expression import ExpressionModel
from service.runtime import SessionSettings
from training.assessment import assess, head_angles, report
from training.backbones import CheckpointError, load_backbone
from training.calibration import fit_temperature
from training.card import Assessment, Recipe, write_card
from training.config import TrainingConfig
from training.crops import CropDataset
from training.datasets import ferplus
from training.evaluation import Evaluation
from training.export import ModelFacts, export_onnx, make_contract
from training.lan import Lan
from training.pipeline import RunPaths, prepare_split
from training.trainer import BEST


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What a run leaves behind."""

    network: Lan
    config: TrainingConfig
    provenance: dict[str, Any]
    epoch: int


def load_run(folder: Path, checkpoint: str = BEST) -> TrainedRun:
    """The averaged network of a run. Raises CheckpointError where there is none."""
    path = folder / checkpoint
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; train first, or name another --run")
    state = torch.load(path, weights_only=True)
    config = TrainingConfig.from_dict(state["config"])
    labels = state["provenance"]["labels"]
    network = Lan(load_backbone(config.backbone, None), len(labels), fusion=config.fusion)
    network.load_state_dict(state["average"])
    return TrainedRun(network.eval(), config, state["provenance"], state["epoch"])


def validation_crops(paths: RunPaths, size: int) -> tuple[CropDataset, NDArray[np.float64]]:
    """FERPlus validation as the service would cut it, and each head's angle in degrees."""
    prepared = prepare_split(ferplus.load_split(paths.data, "valid"), paths)
    angles = head_angles(prepared.faces.landmarks)
    return CropDataset(prepared.split, prepared.faces, size), angles


def release(run: TrainedRun, paths: RunPaths, output: Path, facts: ModelFacts) -> str:
    """Export `run` to `output` with its measured accuracy and fitted temperature, and its card.

    The card lies beside the file, .md and .png. It and the returned report are measured on the
    exported file. Raises ExportError.
    """
    contract = make_contract(run.network, run.config, run.provenance, facts)
    export_onnx(run.network, contract, output)
    crops, angles = validation_crops(paths, contract.input_size)
    evaluation = _evaluation(output, crops)
    facts = replace(
        facts,
        validation_accuracy=round(evaluation.accuracy, 4),
        temperature=round(fit_temperature(evaluation), 4),
    )
    export_onnx(run.network, make_contract(run.network, run.config, run.provenance, facts), output)
    model = ExpressionModel.load(output, SessionSettings("cpu"))
    origin = run.provenance
    recipe = Recipe(run.config, run.epoch, origin["training_images"], origin["weights"])
    write_card(output.with_suffix(".md"), Assessment(model, evaluation, angles), recipe)
    return report(model, evaluation, angles)


def _evaluation(path: Path, crops: CropDataset) -> Evaluation:
    return assess(ExpressionModel.load(path, SessionSettings("cpu")), crops)


def evaluate_file(path: Path, paths: RunPaths) -> str:
    """The report of an ONNX file on FERPlus validation."""
    model = ExpressionModel.load(path, SessionSettings("cpu"))
    crops, angles = validation_crops(paths, model.contract.input_size)
    return report(model, assess(model, crops), angles)
