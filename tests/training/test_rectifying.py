"""PReLUs that become ReLUs: the fit of one, and of all of a network's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.training.made_up import a_lan, clouds
from training.backbones import MobileFaceNet
from training.config import TrainingConfig
from training.recovery import fold
from training.rectifying import fit_hinge, inner_prelus, rectify


def values(count: int, channels: int) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("slope", "most"),
    [
        (0.0, 1e-6),  # a ReLU already
        (1.0, 1e-3),  # linear: the threshold goes below all values
        (0.1, 0.02),
        (0.5, 0.05),
        (2.5, 0.1),  # steeper below: a ReLU of the other sign
        (-0.2, 0.1),
    ],
)
def test_a_hinge_comes_near_a_prelu(slope: float, most: float) -> None:
    x, slopes = values(2000, 3), torch.full((3,), slope)
    hinge = fit_hinge(x, slopes)
    found = hinge.scale * (hinge.sign * (x - hinge.threshold)).relu() + hinge.offset
    wanted = torch.where(x > 0, x, slopes * x)
    error = (found - wanted).square().mean(0) / wanted.var(0, unbiased=False)
    assert torch.allclose(error, hinge.error, atol=1e-5)
    assert bool((error <= most).all())


def test_each_channel_is_fitted_by_itself() -> None:
    slopes = torch.tensor([0.0, 2.5])
    hinge = fit_hinge(values(500, 2), slopes)
    assert hinge.sign.tolist() == [1, -1]
    assert hinge.scale[0].item() == pytest.approx(1, abs=1e-4)
    assert hinge.scale[1].item() < -1


@torch.no_grad()
def test_of_a_network_more_is_left_than_without_slopes() -> None:
    network = fold(a_lan(TrainingConfig(), seed=3))
    images = clouds(16, 112, seed=4)
    expected = network.backbone(images)

    def error(changed: nn.Module) -> float:
        found = changed(images)
        return float((found - expected).square().mean() / expected.var())

    plain, fitted = copy.deepcopy(network.backbone), copy.deepcopy(network.backbone)
    assert isinstance(plain, MobileFaceNet)
    assert isinstance(fitted, MobileFaceNet)
    for prelu in inner_prelus(plain):
        nn.init.zeros_(prelu.weight)
    rectify(fitted, images)
    assert not any(bool(prelu.weight.any()) for prelu in inner_prelus(fitted))
    kept, was = ([m for m in b.modules() if isinstance(m, nn.PReLU)][-1] for b in (fitted, plain))
    assert torch.equal(kept.weight, was.weight)
    assert error(fitted) < 0.8 * error(plain)
