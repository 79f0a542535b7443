"""Run files, data fingerprints and runs side by side."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.made_up import coloured_split, tiny_lan
from training.backbones import CheckpointError
from training.cli import main
from training.config import TrainingConfig
from training.tracking import RUN_FILE, compare_runs, data_fingerprint, write_run_file
from training.trainer import BEST, METRICS

PROVENANCE = {"labels": ["a", "b", "c"], "dataset": "made up", "weights": "random"}


def test_the_fingerprint_is_that_of_the_data_alone(tmp_path: Path) -> None:
    split = coloured_split(tmp_path, 6)
    before = data_fingerprint(split)
    assert before == data_fingerprint(coloured_split(tmp_path / "moved", 6))
    backwards = dataclasses.replace(
        split, paths=split.paths[::-1], targets=split.targets[::-1], classes=split.classes[::-1]
    )
    assert data_fingerprint(backwards) == before
    other_targets = dataclasses.replace(split, targets=np.roll(split.targets, 1, axis=1))
    assert data_fingerprint(other_targets) != before
    split.paths[0].write_bytes(split.paths[1].read_bytes())
    assert data_fingerprint(split) != before


def test_the_run_file_tells_configuration_machine_and_data(tmp_path: Path) -> None:
    split = coloured_split(tmp_path / "images", 6)
    write_run_file(tmp_path / "run", TrainingConfig(alpha=0.25), PROVENANCE, split)
    told = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert told["config"]["alpha"] == 0.25
    assert told["provenance"] == PROVENANCE
    assert told["environment"]["packages"]["torch"] == metadata.version("torch")
    assert told["data"] == {"images": 6, "sha256": data_fingerprint(split)}


def test_compare_shows_what_differs_and_what_came_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = coloured_split(tmp_path / "images", 6)
    for name, alpha, accuracies in (("first", 0.5, (0.4, 0.7, 0.6)), ("second", 0.0, (0.5,))):
        write_run_file(tmp_path / name, TrainingConfig(alpha=alpha), PROVENANCE, split)
        lines = [
            json.dumps({"epoch": epoch, "loss": 1.0, "accuracy": accuracy})
            for epoch, accuracy in enumerate(accuracies, 1)
        ]
        (tmp_path / name / METRICS).write_text("\n".join(lines) + "\n")
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    table = capsys.readouterr().out
    assert "| alpha | 0.5 | 0.0 |" in table
    assert "| result: epochs done | 3 | 1 |" in table
    assert "| result: epoch | 2 | 1 |" in table
    assert "| result: accuracy | 0.7 | 0.5 |" in table
    assert "backbone" not in table, "what is equal is left out"


def test_a_run_of_before_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    config = TrainingConfig(fusion="concat").as_dict()
    del config["precision"]
    state = {"config": config, "provenance": PROVENANCE, "epoch": 3, "score": 0.61}
    (tmp_path / "old").mkdir()
    torch.save(state | {"average": tiny_lan().state_dict()}, tmp_path / "old" / BEST)
    table = compare_runs([tmp_path / "old"])
    assert "| result: accuracy | 0.61 |" in table
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="name a run's folder"):
        compare_runs([tmp_path / "empty"])
