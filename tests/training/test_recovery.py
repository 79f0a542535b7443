"""An exported file can be trained further: the same answers, statistics that training needs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tests.training.made_up import a_lan, contract_for, logits, some_images
from training.backbones import CheckpointError
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.export import export_onnx
from training.lan import Lan
from training.recovery import recover, settle


def exported(
    folder: Path, config: TrainingConfig, *, shared: Sequence[float] = ()
) -> tuple[Lan, Path]:
    """`shared`: slopes that PReLUs have in all channels, in turn."""
    network = a_lan(config, seed=3)
    prelus = (module for module in network.modules() if isinstance(module, nn.PReLU))
    for prelu, slope in zip(prelus, itertools.cycle(shared), strict=False):
        nn.init.constant_(prelu.weight, slope)
    path = folder / "model.onnx"
    export_onnx(network, contract_for(network, config), path)
    return network, path


@pytest.fixture
def images() -> Tensor:
    return some_images(6)


@pytest.mark.parametrize("fusion", ["add", "concat"])
def test_a_file_gives_back_its_network(tmp_path: Path, images: Tensor, fusion: str) -> None:
    network, path = exported(tmp_path, TrainingConfig(fusion=fusion))  # type: ignore[arg-type]
    model = recover(path)
    assert (model.labels, model.backbone, model.fusion) == (LABELS, "mobilefacenet", fusion)
    assert torch.allclose(logits(model.network, images), logits(network, images), atol=1e-4)


@pytest.mark.parametrize("shared", [(0.2,), (0.0,), (0.0, 0.2, -0.1)])
def test_shared_slopes_come_back(shared: Sequence[float], tmp_path: Path, images: Tensor) -> None:
    network, path = exported(tmp_path, TrainingConfig(), shared=shared)
    found = recover(path).network
    assert torch.allclose(logits(found, images), logits(network, images), atol=1e-4)


def test_settled_it_answers_the_same_and_trains_from_there(tmp_path: Path, images: Tensor) -> None:
    _, path = exported(tmp_path, TrainingConfig())
    network = recover(path).network
    raw = copy.deepcopy(network)
    before = logits(network, images)
    settle(network, [images[:2], images[2:4], images[4:]])
    assert torch.allclose(logits(network, images), before, atol=1e-4)
    # A batch of its own statistics: the settled network gives in training what it gives without.
    for trained in (network, raw):
        trained.train()
        trained.dropout.eval()
    assert torch.allclose(logits(network, images), before, atol=1e-3)
    assert not torch.allclose(logits(raw, images), before, atol=1e-1)


def test_settled_filters_have_the_size_of_fresh_ones(tmp_path: Path, images: Tensor) -> None:
    _, path = exported(tmp_path, TrainingConfig())
    network = recover(path).network
    settle(network, [images])
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d):
            sizes = module.weight.flatten(1).norm(dim=1)
            assert torch.allclose(sizes, torch.ones_like(sizes), atol=1e-4)


def test_a_backbone_that_cannot_be_taken_back_is_named(tmp_path: Path) -> None:
    _, path = exported(tmp_path, TrainingConfig(backbone="iresnet18"))
    with pytest.raises(CheckpointError, match="iresnet18 cannot be taken back"):
        recover(path)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        recover(tmp_path / "none.onnx")
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"not an ONNX file|no model of this package"):
        recover(noise)
    _, path = exported(tmp_path, TrainingConfig())
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, noise)
    with pytest.raises(CheckpointError, match="no model of this package"):
        recover(noise)


def test_another_network_than_its_contract_says_is_refused(tmp_path: Path) -> None:
    _, path = exported(tmp_path, TrainingConfig())
    model = onnx.load(path)
    first = next(i for i in model.graph.initializer if i.name.startswith("onnx::Conv"))
    smaller = np.ascontiguousarray(numpy_helper.to_array(first)[:, :1])
    first.CopyFrom(numpy_helper.from_array(smaller, first.name))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="another network"):
        recover(path)
