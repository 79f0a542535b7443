"""PReLU slopes that grow together until the network can be exported with LeakyReLUs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.made_up import made_up_crops, tiny_lan
from training.config import TrainingConfig
from training.lan import Lan
from training.slopes import share_slopes, slopes
from training.trainer import CHECKPOINT, Trainer

CONFIG = TrainingConfig(epochs=3, batch_size=8, share_slopes_epochs=2.0, ema_decay=0.8, seed=0)


def prelu(*values: float) -> nn.PReLU:
    layer = nn.PReLU(len(values))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))
    return layer


def all_equal(slope: Tensor) -> bool:
    return len(set(slope.tolist())) == 1


def test_the_way_to_the_mean_is_straight() -> None:
    layer = prelu(0.1, 0.2, 0.6)
    share_slopes(layer, 0.0, 0.25)
    assert layer.weight.tolist() == pytest.approx([0.15, 0.225, 0.525])
    share_slopes(layer, 0.25, 0.5)
    assert layer.weight.tolist() == pytest.approx([0.2, 0.25, 0.45])


@pytest.mark.parametrize("after", [1.0, 1.3])
def test_at_the_end_all_slopes_are_exactly_equal(after: float) -> None:
    layer = prelu(0.1, 0.2, 0.7)
    share_slopes(layer, 0.9, after)
    assert all_equal(layer.weight)
    assert layer.weight[0].item() == pytest.approx(1 / 3)


def test_beyond_the_end_nothing_moves() -> None:
    layer = prelu(0.1, 0.9)
    share_slopes(layer, 1.0, 1.1)
    assert layer.weight.tolist() == pytest.approx([0.1, 0.9])


def with_prelus(folder: Path, config: TrainingConfig) -> Trainer:
    network = tiny_lan()
    assert network.attention is not None
    network.attention.layers[2] = prelu(*torch.linspace(-0.2, 0.6, 64).tolist())
    return Trainer(network, config, folder / "run", {"labels": list("abc")})


def changed_layer(network: Lan) -> Tensor:
    weight = network.get_parameter("attention.layers.2.weight")
    assert isinstance(weight, Tensor)
    return weight


def test_training_ends_with_equal_slopes_in_network_and_average(tmp_path: Path) -> None:
    trainer = with_prelus(tmp_path, CONFIG)
    trainer.fit(made_up_crops(tmp_path / "train", 24), None, until=1)
    assert not all_equal(changed_layer(trainer.network))
    trainer.fit(made_up_crops(tmp_path / "train", 24), None)
    for network in (trainer.network, trainer.average):
        assert all(map(all_equal, slopes(network)))
        assert changed_layer(network)[0].item() == pytest.approx(0.2, abs=1e-5)


def test_an_interrupted_run_shares_its_slopes_alike(tmp_path: Path) -> None:
    crops = made_up_crops(tmp_path / "train", 24)
    whole = with_prelus(tmp_path / "whole", CONFIG)
    whole.fit(crops, None)
    first = with_prelus(tmp_path / "parts", CONFIG)
    first.fit(crops, None, until=1)
    second = with_prelus(tmp_path / "parts", CONFIG)
    assert second.resume()
    second.fit(crops, None)
    states = [torch.load(f / "run" / CHECKPOINT) for f in (tmp_path / "whole", tmp_path / "parts")]
    for name, value in states[0]["average"].items():
        assert torch.equal(value, states[1]["average"][name]), name


def test_slopes_are_learnt_where_they_are_not_shared(tmp_path: Path) -> None:
    trainer = with_prelus(tmp_path, dataclasses.replace(CONFIG, share_slopes_epochs=0.0))
    before = [slope.clone() for slope in slopes(trainer.network)]
    trainer.fit(made_up_crops(tmp_path / "train", 24), None, until=1)
    after = list(slopes(trainer.network))
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
