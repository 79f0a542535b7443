"""Learning from a teacher: the loss, and what a run with one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.made_up import made_up_crops, tiny_lan
from training.config import TrainingConfig
from training.distillation import distillation_loss, ensemble_answer
from training.lan import Lan
from training.trainer import Trainer

CONFIG = TrainingConfig(epochs=4, batch_size=8, learning_rate=3e-3, ema_decay=0.5, seed=0)


def logits(seed: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


def test_agreement_costs_nothing() -> None:
    assert distillation_loss(logits(0), logits(0).log_softmax(1)).item() == pytest.approx(
        0, abs=1e-6
    )


def test_a_difference_costs() -> None:
    assert distillation_loss(logits(0), logits(1).log_softmax(1)).item() > 0.1


def test_an_ensembles_answer_is_the_mean_of_its_probabilities() -> None:
    told = ensemble_answer([logits(0), logits(1), logits(2)])
    expected = torch.stack([logits(seed).softmax(1) for seed in range(3)]).mean(0)
    assert torch.allclose(told.exp(), expected, atol=1e-6)


def trained(folder: Path, teachers: Sequence[Lan], weight: float = 10.0) -> Lan:
    torch.manual_seed(1)
    config = dataclasses.replace(CONFIG, teacher_weight=weight)
    trainer = Trainer(tiny_lan(), config, folder, {"labels": list("abc")}, teachers=teachers)
    trainer.fit(made_up_crops(folder / "train", 24), None)
    return trainer.network


def test_a_run_with_teachers_comes_closer_to_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teachers = [tiny_lan(), tiny_lan()]
    before = [p.clone() for teacher in teachers for p in teacher.parameters()]
    taught, untaught = trained(tmp_path / "a", teachers), trained(tmp_path / "b", ())
    after = [p for teacher in teachers for p in teacher.parameters()]
    assert all(map(torch.equal, before, after)), "teachers do not learn"
    size = taught.backbone.input_size
    images = torch.randn(16, 3, size, size)
    with torch.no_grad():
        told = ensemble_answer([teacher.eval()(images).logits for teacher in teachers])
        near, far = (distillation_loss(n.eval()(images).logits, told) for n in (taught, untaught))
    assert near < far


def test_a_weight_of_zero_changes_nothing(tmp_path: Path) -> None:
    weightless = trained(tmp_path / "a", [tiny_lan()], 0.0)
    for own, other in zip(
        weightless.parameters(), trained(tmp_path / "b", ()).parameters(), strict=True
    ):
        assert torch.allclose(own, other)
