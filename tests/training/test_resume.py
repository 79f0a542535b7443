"""A resumed run equals an uninterrupted one, bit for bit, or is refused."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.made_up import coloured_split, fitted, made_up_crops, some_images, tiny_lan
from training.augmentation import Augmentation
from training.backbones import MobileFaceNet, load_backbone
from training.config import TrainingConfig
from training.crops import CropDataset
from training.lan import Lan
from training.rectifying import begin_fading, fading
from training.trainer import BEST, CHECKPOINT, METRICS, Trainer, TrainingError

# Dropout and every augmentation, since each draws random numbers that a resumption must repeat.
ADAMW = TrainingConfig(epochs=4, batch_size=8, learning_rate=0.02, ema_decay=0.8, dropout=0.3)
SGD = dataclasses.replace(ADAMW, optimizer="sgd", learning_rate=0.1)
PROVENANCE = {
    "labels": ["a", "b", "c"],
    "dataset": "made up",
    "protocol": "training",
    "training_images": 24,
    "weights": "random",
    "commit": "1234567",
    "torch": "2.0",
    "python": "3.11",
}


class InterruptedCrops(CropDataset):
    """Ends the run in the middle of an epoch, as Ctrl-C does."""

    interrupt_epoch = -1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        if self.epoch == self.interrupt_epoch and index == 11:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def crops_in(folder: Path, *, interrupt_epoch: int = -1) -> CropDataset:
    plain = made_up_crops(folder, 24)
    crops = InterruptedCrops(
        plain.split,
        fitted(24),
        28,
        guidance=plain._guidance,
        augmentation=Augmentation(grey=0.2),
        seed=3,
    )
    crops.interrupt_epoch = interrupt_epoch
    return crops


def held_out_in(folder: Path) -> CropDataset:
    return CropDataset(coloured_split(folder, 12), fitted(12), 28)


def new_trainer(folder: Path, config: TrainingConfig, *, seed: int = 0) -> Trainer:
    network = tiny_lan(dropout=config.dropout, seed=seed)
    return Trainer(network, config, folder, dict(PROVENANCE))


def leaves(state: object, where: str = "") -> Iterator[tuple[str, object]]:
    """Every value of nested dicts and lists, with its place."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, f"{where}.{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from leaves(value, f"{where}[{index}]")
    else:
        yield where, state


def assert_equal(actual: object, expected: object) -> None:
    """The same values at the same places; tensors bit for bit."""
    found, wanted = dict(leaves(actual)), dict(leaves(expected))
    assert found.keys() == wanted.keys()
    for where, value in wanted.items():
        other = found[where]
        if isinstance(value, Tensor):
            assert isinstance(other, Tensor), where
            assert torch.equal(other, value), where
        else:
            assert other == value, where


def assert_same_run(folder: Path, expected: Path) -> None:
    for name in (CHECKPOINT, BEST):
        actual = torch.load(folder / name, weights_only=True)
        assert_equal(actual, torch.load(expected / name, weights_only=True))
    assert (folder / METRICS).read_text() == (expected / METRICS).read_text()


@pytest.fixture(scope="module", params=[ADAMW, SGD], ids=["adamw", "sgd"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingConfig]:
    """An uninterrupted run and its configuration."""
    folder = tmp_path_factory.mktemp("whole")
    crops, held_out = crops_in(folder / "train"), held_out_in(folder / "valid")
    new_trainer(folder, request.param).fit(crops, held_out)
    return folder, request.param


def go_on(run: Path, folder: Path, config: TrainingConfig) -> None:
    """What another process does: other random weights, another state of the generator."""
    trainer = new_trainer(run, config, seed=77)
    assert trainer.resume()
    trainer.fit(crops_in(folder / "train"), held_out_in(folder / "valid"))


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_between_epochs(
    whole: tuple[Path, TrainingConfig], tmp_path: Path, after: int
) -> None:
    (expected, config), run = whole, tmp_path / "run"
    crops, held_out = crops_in(tmp_path / "train"), held_out_in(tmp_path / "valid")
    new_trainer(run, config).fit(crops, held_out, until=after)
    go_on(run, tmp_path, config)
    assert_same_run(run, expected)


def test_interrupted_within_an_epoch(whole: tuple[Path, TrainingConfig], tmp_path: Path) -> None:
    (expected, config), run = whole, tmp_path / "run"
    crops = crops_in(tmp_path / "train", interrupt_epoch=2)
    with pytest.raises(KeyboardInterrupt):
        new_trainer(run, config).fit(crops, held_out_in(tmp_path / "valid"))
    go_on(run, tmp_path, config)
    assert_same_run(run, expected)


def test_interrupted_while_a_checkpoint_was_written(
    whole: tuple[Path, TrainingConfig], tmp_path: Path
) -> None:
    """The epoch is told and done again, but told once."""
    (expected, config), run = whole, tmp_path / "run"
    trainer = new_trainer(run, config)
    crops, held_out = crops_in(tmp_path / "train"), held_out_in(tmp_path / "valid")
    trainer.fit(crops, held_out, until=1)
    trainer.provenance["unsaveable"] = threading.Lock()
    with pytest.raises(TypeError, match="cannot pickle"):
        trainer.fit(crops, held_out, until=2)
    go_on(run, tmp_path, config)
    assert_same_run(run, expected)


def test_mobilefacenet_across_the_thaw(tmp_path: Path) -> None:
    """The real backbone, resumed at the end of its frozen epochs."""
    config = dataclasses.replace(
        ADAMW, epochs=2, batch_size=4, freeze_before="conv_6sep", freeze_epochs=1
    )
    crops = CropDataset(coloured_split(tmp_path, 8), fitted(8), 112, augmentation=Augmentation())

    def trainer(run: str, seed: int) -> Trainer:
        torch.manual_seed(seed)
        network = Lan(load_backbone("mobilefacenet", None), 3, dropout=config.dropout)
        return Trainer(network, config, tmp_path / run, {})

    trainer("whole", 0).fit(crops, None)
    trainer("run", 0).fit(crops, None, until=1)
    resumed = trainer("run", 77)
    assert resumed.resume()
    resumed.fit(crops, None)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("after", [1, 2, 3])
def test_while_slopes_fade_and_after(tmp_path: Path, after: int) -> None:
    """Of six epochs, two fade: resumed within, at their end, and later."""
    config = dataclasses.replace(ADAMW, epochs=6, batch_size=4, relu=True, mixup=0.5)
    crops = CropDataset(coloured_split(tmp_path, 4), fitted(4), 112, augmentation=Augmentation())

    def trainer(run: str, seed: int) -> Trainer:
        torch.manual_seed(seed)
        backbone = MobileFaceNet()
        begin_fading(backbone, some_images(4))
        network = Lan(backbone, 3, dropout=config.dropout)
        return Trainer(network, config, tmp_path / run, {})

    trainer("whole", 0).fit(crops, None, until=4)
    trainer("run", 0).fit(crops, None, until=after)
    assert (tmp_path / "run" / BEST).exists() == (after >= 2), "half faded, a network is not best"
    resumed = trainer("run", 77)
    assert resumed.resume()
    assert any(fading(resumed.network)) == (after < 2)
    resumed.fit(crops, None, until=4)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(whole: tuple[Path, TrainingConfig], tmp_path: Path) -> None:
    run, config = whole
    written = (run / CHECKPOINT).read_bytes()
    go_on(run, tmp_path, config)
    assert (run / CHECKPOINT).read_bytes() == written


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path / "run", ADAMW)
    assert not trainer.resume()
    assert trainer.epoch == 0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"alpha": 0.0, "batch_size": 4}, "alpha, batch_size"),
        ({"augmentation": Augmentation(flip=0)}, "augmentation"),
        ({"epochs": 9}, "epochs"),
    ],
)
def test_another_configuration_is_refused(
    tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    run = tmp_path / "run"
    new_trainer(run, ADAMW).fit(crops_in(tmp_path / "train"), None, until=1)
    other = new_trainer(run, dataclasses.replace(ADAMW, **change), seed=5)
    before = {name: value.clone() for name, value in other.network.state_dict().items()}
    with pytest.raises(TrainingError, match=f"made with other settings: {names}$"):
        other.resume()
    assert_equal(dict(other.network.state_dict()), before)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "training + validation"},
        {"dataset": "another"},
        {"training_images": 25},
        {"weights": "mobilefacenet.safetensors"},
        {"labels": ["a", "c", "b"]},
    ],
)
def test_other_data_or_weights_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = tmp_path / "run"
    new_trainer(run, ADAMW).fit(crops_in(tmp_path / "train"), None, until=1)
    other = Trainer(tiny_lan(), ADAMW, run, PROVENANCE | change)
    with pytest.raises(TrainingError, match=f"made with other settings: {next(iter(change))}$"):
        other.resume()


def test_another_commit_or_library_may_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    new_trainer(run, ADAMW).fit(crops_in(tmp_path / "train"), None, until=1)
    newer = PROVENANCE | {"commit": "89abcde", "torch": "3.0", "python": "3.14"}
    assert Trainer(tiny_lan(), ADAMW, run, newer).resume()


def test_a_run_from_before_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    """A checkpoint that does not know a field of the configuration was made with its default."""
    run = tmp_path / "run"
    crops = crops_in(tmp_path / "images")
    new_trainer(run, ADAMW).fit(crops, None, until=1)
    state = torch.load(run / CHECKPOINT, weights_only=True)
    del state["config"]["balanced"]
    torch.save(state, run / CHECKPOINT)
    assert new_trainer(run, ADAMW).resume()
    with pytest.raises(TrainingError, match=r"made with other settings: balanced$"):
        new_trainer(run, dataclasses.replace(ADAMW, balanced=True)).resume()
