"""The trainer's parts: loss curve, rates, averages, freezing, metrics, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import nn

from tests.training.made_up import coloured_split, fitted, made_up_crops, tiny_lan
from training.augmentation import Augmentation
from training.backbones import load_backbone
from training.config import TrainingConfig
from training.crops import CropDataset
from training.evaluation import evaluate
from training.lan import Lan
from training.trainer import (
    BEST,
    CHECKPOINT,
    METRICS,
    Trainer,
    TrainingError,
    climbed,
    frozen_stages,
    learning_rate,
    make_optimizer,
    update_average,
)

CONFIG = TrainingConfig(epochs=3, batch_size=8, learning_rate=0.02, ema_decay=0.8, dropout=0.0)
SGD = dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4)


def trainer_in(folder: Path, config: TrainingConfig = CONFIG) -> Trainer:
    return Trainer(tiny_lan(dropout=config.dropout), config, folder, {"labels": list("abc")})


@pytest.fixture
def crops(tmp_path: Path) -> CropDataset:
    return made_up_crops(tmp_path / "train", 24)


@pytest.fixture
def held_out(tmp_path: Path) -> CropDataset:
    return CropDataset(coloured_split(tmp_path / "valid", 12), fitted(12), 28)


def checkpoint(folder: Path, name: str = CHECKPOINT) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return state


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


# --- learning rate, optimiser, average ---------------------------------------------------------


def test_the_rate_rises_to_its_peak_then_falls_as_a_cosine() -> None:
    config = TrainingConfig(epochs=10, warmup_epochs=2, learning_rate=0.4)
    assert learning_rate(config, 0) == 0
    assert learning_rate(config, 0.1) == pytest.approx(0.2)
    assert learning_rate(config, 0.2) == pytest.approx(0.4)
    assert learning_rate(config, 0.4) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(config, 0.6) == pytest.approx(0.2)
    assert learning_rate(config, 1) == pytest.approx(0)
    curve = [learning_rate(config, step / 100) for step in range(101)]
    assert max(curve) == pytest.approx(0.4)
    assert curve[:21] == sorted(curve[:21])
    assert curve[20:] == sorted(curve[20:], reverse=True)


def test_without_warmup_the_first_step_has_the_peak_rate() -> None:
    assert learning_rate(TrainingConfig(warmup_epochs=0, learning_rate=0.4), 0) == 0.4


@pytest.mark.parametrize(("config", "kind"), [(CONFIG, torch.optim.AdamW), (SGD, torch.optim.SGD)])
def test_only_weight_matrices_decay(
    config: TrainingConfig, kind: type[torch.optim.Optimizer]
) -> None:
    network = tiny_lan()
    optimizer = make_optimizer(network, config)
    assert isinstance(optimizer, kind)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decays = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays.keys() == set(names.values())
    for name, decay in decays.items():
        bare = "bn" in name or "prelu" in name or name.endswith("bias")
        bare = bare or network.get_parameter(name).ndim == 1
        assert decay == (0 if bare else config.weight_decay), name


def test_the_average_moves_a_share_of_the_way() -> None:
    average, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    network.weight.data = torch.tensor([3.0, 5.0])
    network.running_mean = torch.tensor([1.0, -1.0])
    network.num_batches_tracked = torch.tensor(7)
    update_average(average, network, 0.75)
    torch.testing.assert_close(average.weight.data, torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(average.running_mean, torch.tensor([0.25, -0.25]))
    assert average.num_batches_tracked == 7
    torch.testing.assert_close(network.weight.data, torch.tensor([3.0, 5.0]))


def test_the_average_follows_every_step(crops: CropDataset, tmp_path: Path) -> None:
    """One epoch of three steps, replayed by hand from the weights after each step.

    So early, the average forgets sooner than later on.
    """
    config = dataclasses.replace(CONFIG, epochs=1, warmup_epochs=0)
    trainer = trainer_in(tmp_path / "run", config)
    expected = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    seen: list[dict[str, torch.Tensor]] = []
    trainer.optimizer.register_step_post_hook(
        lambda *_: seen.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
    )
    trainer.fit(crops, None)
    assert len(seen) == 3
    for decay, state in zip((1 / 10, 2 / 11, 3 / 12), seen, strict=True):
        for name, value in state.items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in trainer.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])
    assert not any(parameter.requires_grad for parameter in trainer.average.parameters())


# --- learning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, SGD], ids=["adamw", "sgd"])
def test_learns_a_small_set(
    crops: CropDataset, held_out: CropDataset, tmp_path: Path, config: TrainingConfig
) -> None:
    config = dataclasses.replace(config, epochs=10, augmentation=Augmentation(erase=0))
    trainer = trainer_in(tmp_path / "run", config)
    trainer.fit(crops, held_out)
    found = metrics(tmp_path / "run")
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]
    assert found[-1]["guidance_loss"] < 0.9 * found[0]["guidance_loss"]
    assert found[-1]["accuracy"] >= 0.9


def test_a_loss_that_is_not_finite_ends_the_run(crops: CropDataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = trainer_in(folder)
    trainer.fit(crops, None, until=1)
    written = (folder / CHECKPOINT).read_bytes()
    trainer.network.classifier.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="epoch 2: the loss is not finite"):
        trainer.fit(crops, None)
    assert (folder / CHECKPOINT).read_bytes() == written


def test_the_gradient_is_taken_up_the_slope_and_the_weights_come_back() -> None:
    network = nn.Linear(2, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    with climbed(network, 0.5):
        assert torch.allclose(network.weight, torch.tensor([[1.3, 1.4]]))
    assert torch.equal(network.weight, torch.ones(1, 2))


def test_what_is_seen_up_the_slope_leaves_running_statistics_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    network(torch.randn(8, 2)).sum().backward()
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    before, momentum = norm.running_mean.clone(), norm.momentum
    with climbed(network, 0.5):
        network(torch.randn(8, 2) + 5)
    assert torch.equal(norm.running_mean, before)
    assert norm.momentum == momentum


def test_sharpness_is_part_of_a_step(crops: CropDataset, tmp_path: Path) -> None:
    """With the same seed, another gradient: at 0 it would be the plain one."""
    weights = []
    for sharpness in (0.0, 1e-9, 0.5):
        torch.manual_seed(0)
        config = dataclasses.replace(CONFIG, sharpness=sharpness, optimizer="sgd")
        trainer = trainer_in(tmp_path / f"run{sharpness}", config)
        trainer.fit(crops, None, until=1)
        weights.append(trainer.network.classifier.weight.detach().clone())
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    assert not torch.allclose(weights[0], weights[2], atol=1e-4)


# --- freezing ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_crops(tmp_path_factory: pytest.TempPathFactory) -> CropDataset:
    split = coloured_split(tmp_path_factory.mktemp("large"), 8)
    return CropDataset(split, fitted(8), 112)


def changed_stages(network: Lan, before: dict[str, torch.Tensor]) -> set[str]:
    """Stages of the backbone of which any parameter or statistic differs from `before`."""
    state = network.backbone.state_dict()
    moved = {name for name, value in state.items() if not torch.equal(value, before[name])}
    return {name.split(".")[0].split("_conv_")[0] for name in moved}


@pytest.mark.parametrize("config", [CONFIG, SGD], ids=["adamw", "sgd"])
def test_frozen_stages_do_not_change_until_they_thaw(
    large_crops: CropDataset, tmp_path: Path, config: TrainingConfig
) -> None:
    config = dataclasses.replace(
        config, epochs=2, batch_size=4, freeze_before="dconv_45", freeze_epochs=1, warmup_epochs=0
    )
    torch.manual_seed(0)
    network = Lan(load_backbone("mobilefacenet", None), 3)
    trainer = Trainer(network, config, tmp_path / "run", {})
    before = {name: v.clone() for name, v in network.backbone.state_dict().items()}
    trainer.fit(large_crops, None, until=1)
    thawed = {"dconv_45", "res_5_block0", "res_5_block1", "conv_6sep"}
    assert changed_stages(trainer.network, before) == thawed
    assert changed_stages(trainer.average, before) == thawed
    trainer.fit(large_crops, None)
    everything = {name.split(".")[0].split("_conv_")[0] for name in before}
    assert changed_stages(trainer.network, before) == everything


def test_late_frozen_stages_do_not_change_any_more(
    large_crops: CropDataset, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        CONFIG, epochs=2, batch_size=4, freeze_before="dconv_45", freeze_from=1, warmup_epochs=0
    )
    torch.manual_seed(0)
    network = Lan(load_backbone("mobilefacenet", None), 3)
    trainer = Trainer(network, config, tmp_path / "run", {})
    before = {name: v.clone() for name, v in network.backbone.state_dict().items()}
    trainer.fit(large_crops, None, until=1)
    everything = {name.split(".")[0].split("_conv_")[0] for name in before}
    assert changed_stages(trainer.network, before) == everything
    between = {name: v.clone() for name, v in trainer.network.backbone.state_dict().items()}
    trainer.fit(large_crops, None)
    late = {"dconv_45", "res_5_block0", "res_5_block1", "conv_6sep"}
    assert changed_stages(trainer.network, between) == late


def test_only_known_stages_can_be_frozen() -> None:
    network = Lan(load_backbone("mobilefacenet", None), 3)
    assert frozen_stages(network, "") == []
    assert len(frozen_stages(network, "conv_2_dw")) == 1
    with pytest.raises(TrainingError, match="'layer3' is unknown; one of conv_1, conv_2_dw"):
        frozen_stages(network, "layer3")
    with pytest.raises(TrainingError, match="mobilefacenet backbone only"):
        frozen_stages(tiny_lan(), "conv_1")


# --- what a run writes -------------------------------------------------------------------------


def test_metrics_and_tensorboard_tell_each_epoch(
    crops: CropDataset, held_out: CropDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    trainer_in(folder).fit(crops, held_out)
    found = metrics(folder)
    assert [line["epoch"] for line in found] == [1, 2, 3]
    names = {"loss", "guidance_loss", "accuracy", "mean_recall"}
    assert all(line.keys() == names | {"epoch"} for line in found)
    (file,) = folder.glob("events.out.tfevents.*")
    board = EventAccumulator(str(file)).Reload()
    assert set(board.Tags()["scalars"]) == names
    for name in names:
        steps = {event.step: event.value for event in board.Scalars(name)}
        assert steps == {line["epoch"]: pytest.approx(line[name], abs=1e-5) for line in found}


def test_the_accuracy_told_is_the_averages(
    crops: CropDataset, held_out: CropDataset, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path / "run")
    trainer.fit(crops, held_out)
    accuracy = evaluate(trainer.average, held_out).accuracy
    assert metrics(tmp_path / "run")[-1]["accuracy"] == pytest.approx(accuracy, abs=1e-5)


def test_the_best_epoch_is_kept(crops: CropDataset, held_out: CropDataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = trainer_in(folder)
    trainer.fit(crops, held_out, until=2)
    best = checkpoint(folder, BEST)
    accuracies = [line["accuracy"] for line in metrics(folder)]
    assert best["score"] == pytest.approx(max(accuracies), abs=1e-5)
    assert trainer.best == best["score"]
    # An epoch that is worse leaves it as it is.
    trainer.best = 2.0
    trainer.fit(crops, held_out)
    assert checkpoint(folder, BEST)["epoch"] == best["epoch"]
    assert checkpoint(folder)["epoch"] == 3


def test_a_best_checkpoint_holds_what_release_needs(
    crops: CropDataset, held_out: CropDataset, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path / "run")
    trainer.fit(crops, held_out, until=1)
    best = checkpoint(tmp_path / "run", BEST)
    assert TrainingConfig.from_dict(best["config"]) == CONFIG
    assert best["provenance"] == {"labels": ["a", "b", "c"]}
    network = tiny_lan(seed=9)
    network.load_state_dict(best["average"])
    logits = evaluate(network, held_out).logits
    np.testing.assert_array_equal(logits, evaluate(trainer.average, held_out).logits)


def test_without_validation_the_last_epoch_is_the_best(crops: CropDataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer_in(folder).fit(crops, None)
    assert checkpoint(folder, BEST)["epoch"] == 3
    assert "accuracy" not in metrics(folder)[0]


def test_a_checkpoint_is_replaced_whole_or_not_at_all(crops: CropDataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = trainer_in(folder)
    trainer.fit(crops, None, until=1)
    written = {name: (folder / name).read_bytes() for name in (CHECKPOINT, BEST)}
    # Saving breaks half-way: a lock cannot be stored.
    trainer.provenance["unsaveable"] = threading.Lock()
    with pytest.raises(TypeError, match="cannot pickle"):
        trainer.fit(crops, None, until=2)
    for name, content in written.items():
        assert (folder / name).read_bytes() == content
    assert trainer_in(folder).resume()


def test_configuration_round_trip() -> None:
    config = TrainingConfig(epochs=3, optimizer="sgd", augmentation=Augmentation(flip=0.1))
    stored = json.loads(json.dumps(config.as_dict()))
    assert TrainingConfig.from_dict(stored) == config
