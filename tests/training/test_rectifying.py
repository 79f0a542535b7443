"""PReLUs that become ReLUs: the fit of one, and of all of a network's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.made_up import a_lan, clouds
from training.backbones import MobileFaceNet
from training.config import TrainingConfig
from training.lan import Lan
from training.rectifying import (
    begin_fading,
    fade,
    fading,
    finish_fading,
    fit_hinge,
    inner_prelus,
)


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
    found = hinge.scale * (hinge.sign * (x - hinge.threshold)).relu()
    wanted = torch.where(x > 0, x, slopes * x)
    error = (found - wanted).var(0, unbiased=False) / wanted.var(0, unbiased=False)
    assert torch.allclose(error, hinge.error, atol=1e-5)
    assert bool((error <= most).all())


def test_each_channel_is_fitted_by_itself() -> None:
    slopes = torch.tensor([0.0, 2.5])
    hinge = fit_hinge(values(500, 2), slopes)
    assert hinge.sign.tolist() == [1, -1]
    assert hinge.scale[0].item() == pytest.approx(1, abs=1e-4)
    assert hinge.scale[1].item() < -1


def faded(share: float) -> tuple[Lan, Tensor]:
    """A network on its way to ReLUs, and images that it was fitted to."""
    network = a_lan(TrainingConfig(), seed=3)
    images = clouds(16, 112, seed=4)
    assert isinstance(network.backbone, MobileFaceNet)
    begin_fading(network.backbone, images)
    fade(network, share)
    return network.eval(), images


@torch.no_grad()
def test_what_begins_to_fade_answers_as_before() -> None:
    network, images = faded(0.0)
    expected = a_lan(TrainingConfig(), seed=3).eval()(images)
    assert torch.allclose(network(images).logits, expected.logits, atol=1e-4)
    kept = [m for m in network.backbone.modules() if isinstance(m, nn.PReLU)]
    assert len(kept) == 1, "the last PReLU gives F_o"


@torch.no_grad()
def test_what_has_faded_is_a_network_of_relus() -> None:
    network, images = faded(1.0)
    expected = network(images)
    assert isinstance(network.backbone, MobileFaceNet)
    finish_fading(network.backbone)
    assert not any(fading(network))
    assert not any(bool(prelu.weight.any()) for prelu in inner_prelus(network.backbone))
    assert torch.allclose(network(images).logits, expected.logits, atol=1e-4)
    assert network.state_dict().keys() == a_lan(TrainingConfig(), seed=3).state_dict().keys()


def test_while_it_fades_slopes_are_learnt() -> None:
    network, images = faded(0.5)
    network.train()(images).logits.sum().backward()
    assert all(bool(m.weight.grad is not None and m.weight.grad.any()) for m in fading(network))
