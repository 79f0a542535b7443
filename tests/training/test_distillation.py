"""Learning from a teacher: the loss, and what a run with one does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training.made_up import made_up_crops, tiny_lan
from training.config import TrainingConfig
from training.distillation import distillation_loss
from training.lan import Lan, LanOutput
from training.trainer import Trainer

CONFIG = TrainingConfig(epochs=4, batch_size=8, learning_rate=3e-3, ema_decay=0.5, seed=0)


def output(seed: int, scale: float = 1.0) -> LanOutput:
    draw = torch.Generator().manual_seed(seed)
    return LanOutput(
        torch.randn(5, 3, generator=draw),
        None,
        torch.randn(5, 8, 7, 7, generator=draw) * scale,
    )


def test_agreement_costs_nothing() -> None:
    assert distillation_loss(output(0), output(0)).item() == pytest.approx(0, abs=1e-6)


def test_either_difference_costs() -> None:
    own, told = output(0), output(1)
    for field in ("logits", "feature_map"):
        other = told._replace(**{field: getattr(own, field)})
        assert distillation_loss(other, told).item() > 0.1


def test_the_scale_of_the_features_does_not_matter() -> None:
    small, large = (
        distillation_loss(output(0, scale), output(1, scale)).item() for scale in (1.0, 100.0)
    )
    assert small == pytest.approx(large, rel=1e-4)


def test_a_teacher_without_features_divides_nothing_by_zero() -> None:
    assert torch.isfinite(distillation_loss(output(0), output(1, scale=0.0)))


def trained(folder: Path, teacher: Lan | None, weight: float = 10.0) -> Lan:
    torch.manual_seed(1)
    config = dataclasses.replace(CONFIG, teacher_weight=weight)
    trainer = Trainer(tiny_lan(), config, folder, {"labels": list("abc")}, teacher=teacher)
    trainer.fit(made_up_crops(folder / "train", 24), None)
    return trainer.network


def test_a_run_with_a_teacher_comes_closer_to_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = tiny_lan()
    before = [p.clone() for p in teacher.parameters()]
    taught, untaught = trained(tmp_path / "a", teacher), trained(tmp_path / "b", None)
    assert all(map(torch.equal, before, teacher.parameters())), "the teacher does not learn"
    images = torch.randn(16, 3, teacher.backbone.input_size, teacher.backbone.input_size)
    with torch.no_grad():
        told, near, far = (n.eval()(images) for n in (teacher, taught, untaught))
    assert distillation_loss(near, told) < distillation_loss(far, told)


def test_a_weight_of_zero_changes_nothing(tmp_path: Path) -> None:
    weightless = trained(tmp_path / "a", tiny_lan(), 0.0)
    for own, other in zip(
        weightless.parameters(), trained(tmp_path / "b", None).parameters(), strict=True
    ):
        assert torch.allclose(own, other)
