"""torch, ONNX and the service agree; the contract goes with the file, or the file is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.contract import METADATA_KEY, ModelContract
from service.errors import ModelContractError
from service.expression import ExpressionModel, Reading
from service.faces.alignment import ARCFACE_TEMPLATE
from service.runtime import SessionSettings
from tests.training.made_up import clouds, contract_for, enliven, grey_face
from training.backbones import load_backbone
from training.config import TrainingConfig
from training.crops import normalise
from training.datasets.ferplus import LABELS
from training.export import (
    TOLERANCE,
    ExportError,
    SplitPReLU,
    export_onnx,
    replace_prelus,
    write_contract,
)
from training.lan import Lan

UInt8 = NDArray[np.uint8]
CPU = SessionSettings("cpu")


@dataclass(frozen=True)
class Exported:
    """A network, its file and the service's view of it."""

    network: Lan
    contract: ModelContract
    path: Path
    model: ExpressionModel


def export(config: TrainingConfig, folder: Path) -> Exported:
    torch.manual_seed(1)
    backbone = load_backbone(config.backbone, None)
    network = enliven(Lan(backbone, len(LABELS), fusion=config.fusion, dropout=0.5))
    nn.init.normal_(network.classifier.bias)
    contract = contract_for(network, config)
    path = folder / "lan.onnx"
    export_onnx(network, contract, path)
    return Exported(network, contract, path, ExpressionModel.load(path, CPU))


@pytest.fixture(
    scope="module",
    params=[
        TrainingConfig(fusion="add"),
        TrainingConfig(fusion="concat"),
        TrainingConfig(fusion="mean"),
        TrainingConfig(fusion="none"),
        TrainingConfig(backbone="resnet18"),
        TrainingConfig(backbone="iresnet18"),
    ],
    ids=lambda config: f"{config.backbone}-{config.fusion}",
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(request.param, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def shipped_kind(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(TrainingConfig(), tmp_path_factory.mktemp("export"))


def crops_of(size: int) -> list[UInt8]:
    """Three aligned-crop-like images [size,size,3]: a face, its mirror image, and noise."""
    face = np.repeat(grey_face(72, size)[..., None], 3, axis=2)
    noise = np.random.default_rng(0).integers(0, 256, face.shape, np.uint8)
    return [face, np.ascontiguousarray(face[:, ::-1]), noise]


@torch.no_grad()
def torch_readings(network: Lan, crops: list[UInt8]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N,K], attention [N,7,7], evidence [N,K,7,7] by the training side."""
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    output = network(normalise(images))
    return output.logits, output.attention, network.evidence(output.feature_map, output.attention)


def stacked(readings: list[Reading], name: str) -> NDArray[np.float32]:
    return np.stack([getattr(reading, name) for reading in readings])


# --- one network, three ways -------------------------------------------------------------------


def test_torch_and_service_agree(exported: Exported) -> None:
    crops = crops_of(exported.contract.input_size)
    readings = exported.model.infer(crops)
    expected = torch_readings(exported.network, crops)
    for name, values in zip(("logits", "attention", "evidence"), expected, strict=True):
        actual = stacked(readings, name)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, values.numpy(), atol=TOLERANCE, rtol=0, err_msg=name)
    assert np.ptp(stacked(readings, "logits"), axis=0).min() > 10 * TOLERANCE, "faces differ"


def test_torch_and_onnx_agree(exported: Exported) -> None:
    session = ort.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    images = clouds(2, exported.contract.input_size, seed=5)
    names = ["logits", "attention", "evidence"]
    logits, attention, evidence = session.run(names, {"image": images.numpy()})
    assert attention.shape == (2, 1, 7, 7)
    with torch.no_grad():
        output = exported.network(images)
        expected = exported.network.evidence(output.feature_map, output.attention)
    actual = (logits, attention[:, 0], evidence)
    for found, wanted in zip(actual, (output.logits, output.attention, expected), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=0)


def test_evidence_plus_bias_is_the_logit(exported: Exported) -> None:
    for reading in exported.model.infer(crops_of(exported.contract.input_size)):
        sums = reading.evidence.mean((1, 2)) + exported.contract.bias
        np.testing.assert_allclose(sums, reading.logits, atol=TOLERANCE, rtol=0)
        assert reading.attention.min() >= 0
        assert reading.attention.max() <= 1


def test_a_batch_equals_its_members(exported: Exported) -> None:
    crops = crops_of(exported.contract.input_size)
    together = exported.model.infer([*crops, *crops[::-1]])
    assert len(together) == 6
    for batched, crop in zip(together, [*crops, *crops[::-1]], strict=True):
        (alone,) = exported.model.infer([crop])
        for name in ("logits", "attention", "evidence", "probabilities"):
            np.testing.assert_allclose(
                getattr(batched, name), getattr(alone, name), atol=TOLERANCE, rtol=0
            )


def test_probabilities_use_the_contracts_temperature(shipped_kind: Exported) -> None:
    for reading in shipped_kind.model.infer(crops_of(112)):
        scaled = torch.from_numpy(reading.logits) / 1.25
        np.testing.assert_allclose(reading.probabilities, scaled.softmax(0).numpy(), atol=1e-6)


def test_export_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = enliven(Lan(load_backbone("mobilefacenet", None), 8))
    network.backbone.get_parameter("conv_1.prelu.weight").data.fill_(0.25)
    before = copy.deepcopy(network.state_dict())
    export_onnx(network, contract_for(network, TrainingConfig()), tmp_path / "lan.onnx")
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["lan.onnx"]


def test_the_baseline_says_that_it_has_no_attention(tmp_path: Path) -> None:
    baseline = export(TrainingConfig(fusion="none"), tmp_path)
    assert baseline.model.contract.fusion == "none"
    for reading in baseline.model.infer(crops_of(112)):
        assert not reading.attention.any()
        assert reading.evidence.std() > 0


# --- PReLU and LeakyReLU -----------------------------------------------------------------------


def test_equal_slopes_are_fused_and_compute_the_same(tmp_path: Path) -> None:
    network = enliven(Lan(load_backbone("mobilefacenet", None), 8))
    slopes = [m for m in network.modules() if isinstance(m, nn.PReLU)]
    for index, module in enumerate(slopes[::2]):
        module.weight.data.fill_((0.0, 0.1, -0.2)[index % 3])
    shared = copy.deepcopy(network)
    replace_prelus(shared)
    relus, leaky, split = (
        [m for m in shared.backbone.modules() if isinstance(m, kind)]
        for kind in (nn.ReLU, nn.LeakyReLU, SplitPReLU)
    )
    assert len(relus) == len(slopes[::6])
    assert len(leaky) == len(slopes[2::6]) + len(slopes[4::6])
    assert len(split) == len(slopes[1::2])
    images = clouds(3, 112, seed=2)
    with torch.no_grad():
        # The split form rounds once more an activation.
        torch.testing.assert_close(shared(images), network(images), atol=1e-5, rtol=1e-4)
    export_onnx(network, contract_for(network, TrainingConfig()), tmp_path / "lan.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "lan.onnx").graph.node]
    assert operations.count("LeakyRelu") == len(leaky)
    assert "PRelu" not in operations


# --- the contract ------------------------------------------------------------------------------


def test_the_contract_comes_back_as_it_was_written(exported: Exported) -> None:
    contract = exported.model.contract
    assert contract == exported.contract
    assert contract.labels == LABELS
    assert contract.color_mode == "rgb"
    assert (contract.mean, contract.std) == ((127.5,) * 3, (128.0,) * 3)
    assert contract.temperature == 1.25
    np.testing.assert_allclose(contract.bias, exported.network.classifier.bias.detach().numpy())
    scale = contract.input_size / 112
    np.testing.assert_allclose(contract.template, np.array(ARCFACE_TEMPLATE) * scale, atol=1e-4)


def rewritten(exported: Exported, path: Path, metadata: dict[str, str]) -> Path:
    """The exported file with other metadata."""
    model = onnx.load(exported.path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_a_file_without_a_contract_is_refused(shipped_kind: Exported, tmp_path: Path) -> None:
    path = rewritten(shipped_kind, tmp_path / "bare.onnx", {})
    with pytest.raises(
        ModelContractError, match=rf"bare\.onnx: no metadata entry '{METADATA_KEY}'"
    ):
        ExpressionModel.load(path, CPU)


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda contract: {key: value for key, value in contract.items() if key not in names}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("labels"), ["labels: Field required"]),
        (without("temperature", "licence"), ["temperature: Field required", "licence: Field requ"]),
        (lambda c: c | {"format_version": 2}, ["format_version: "]),
        (lambda c: c | {"labels": c["labels"][:7]}, ["bias has 8 values for 7 labels"]),
        (lambda c: c | {"labels": c["labels"][:7], "bias": c["bias"][:7]}, ["for 7 labels"]),
        (lambda c: c | {"input_size": 224}, ["cannot run on its input"]),
        (lambda c: c | {"surprise": 1}, ["surprise: "]),
    ],
)
def test_a_contract_that_does_not_hold_is_refused_in_one_line(
    shipped_kind: Exported,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    named: list[str],
) -> None:
    contract = change(shipped_kind.contract.model_dump(mode="json"))
    path = rewritten(shipped_kind, tmp_path / "lan.onnx", {METADATA_KEY: json.dumps(contract)})
    with pytest.raises(ModelContractError) as caught:
        ExpressionModel.load(path, CPU)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classifier.weight", np.nan),
        ("classifier.weight", np.inf),
        ("attention.layers.0.weight", np.nan),
        ("backbone.conv_6sep.conv.weight", np.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    network = enliven(Lan(load_backbone("mobilefacenet", None), 8))
    path = tmp_path / "lan.onnx"
    path.write_bytes(b"an earlier export")
    network.get_parameter(name).data.view(-1)[0] = value
    with pytest.raises(ExportError, match=r"lan\.onnx"):
        export_onnx(network, contract_for(network, TrainingConfig()), path)
    assert path.read_bytes() == b"an earlier export"
    assert [file.name for file in tmp_path.iterdir()] == ["lan.onnx"]


def test_the_contract_follows_the_fusion(shipped_kind: Exported) -> None:
    concat = dataclasses.replace(TrainingConfig(), fusion="concat")
    assert contract_for(shipped_kind.network, concat).fusion == "concat"


def test_a_contract_written_again_takes_the_place_of_the_first(
    shipped_kind: Exported, tmp_path: Path
) -> None:
    path = rewritten(shipped_kind, tmp_path / "lan.onnx", {METADATA_KEY: "none yet", "other": "x"})
    contract = shipped_kind.contract.model_copy(update={"temperature": 0.5})
    write_contract(path, contract)
    assert ExpressionModel.load(path, SessionSettings("cpu")).contract == contract
