"""PReLUs as maxima, an int8 file that answers nearly the same, and a loss that is refused."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from service.contract import ModelContract
from service.expression import ExpressionModel
from service.runtime import SessionSettings
from tests.training.made_up import (
    clouds,
    contract_for,
    enliven,
    grey_face,
    tiny_lan,
    votes_for,
    write_ferplus,
)
from training.assessment import assess
from training.backbones import load_backbone
from training.calibration import fit_temperature
from training.cli import main
from training.config import TrainingConfig
from training.datasets.ferplus import LABELS
from training.export import ExportError, export_onnx, write_contract
from training.lan import Lan
from training.pipeline import RunPaths
from training.quantisation import prelus_as_maxima, quantise
from training.release import validation_crops

UInt8 = NDArray[np.uint8]
CPU = SessionSettings("cpu")
SIZE = 28


@torch.no_grad()
def with_slopes(network: Lan, low: float, high: float) -> Lan:
    """`network` with slopes of its PReLUs from `low` to `high`, in evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            module.weight.uniform_(low, high, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    # Statistics that go with the new slopes, or activations grow from layer to layer.
    network.train()(clouds(8, network.backbone.input_size))
    return network.eval()


def real_lan(backbone: str = "mobilefacenet") -> Lan:
    torch.manual_seed(4)
    return enliven(Lan(load_backbone(backbone, None), len(LABELS)))


def exported(network: Lan, path: Path) -> Path:
    export_onnx(network, contract_for(network, TrainingConfig()), path)
    return path


def outputs(model: onnx.ModelProto, size: int) -> list[NDArray[np.float32]]:
    """Logits, attention and evidence of three random images, by a session of its own."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = ["logits", "attention", "evidence"]
    return list(session.run(names, {"image": clouds(3, size, seed=5).numpy()}))


def operations(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# --- the larger of two for a PReLU --------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 0.5), (-0.5, 0.3), (-0.4, 1.4), (1.05, 1.3)])
def test_maxima_compute_the_same(tmp_path: Path, low: float, high: float) -> None:
    model = onnx.load(exported(with_slopes(real_lan(), low, high), tmp_path / "lan.onnx"))
    maxima = prelus_as_maxima(model)
    onnx.checker.check_model(maxima)
    for before, after in zip(outputs(model, 112), outputs(maxima, 112), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-4 * max(1, np.abs(before).max()), rtol=0)
    was, now = operations(model), operations(maxima)
    assert now.count("Max") == was.count("Max") + 33
    assert now.count("Relu") == was.count("Relu") - 33
    assert len(now) == len(was) - 2 * 33
    assert maxima.metadata_props == model.metadata_props


def test_maxima_of_another_backbone_compute_the_same(tmp_path: Path) -> None:
    network = with_slopes(real_lan("iresnet18"), -0.5, 1.5)
    model = onnx.load(exported(network, tmp_path / "lan.onnx"))
    maxima = prelus_as_maxima(model)
    assert "Max" in operations(maxima)
    for before, after in zip(outputs(model, 112), outputs(maxima, 112), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-4 * max(1, np.abs(before).max()), rtol=0)


def leaky(network: Lan) -> Lan:
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, 0.2)
    return network


@pytest.mark.parametrize("make", [lambda: leaky(real_lan()), lambda: real_lan("resnet18")])
def test_files_without_such_prelus_stay_as_they_are(
    tmp_path: Path, make: Callable[[], Lan]
) -> None:
    model = onnx.load(exported(make(), tmp_path / "lan.onnx"))
    assert prelus_as_maxima(model) == model


def test_a_prelu_that_others_read_too_stays(tmp_path: Path) -> None:
    model = onnx.load(exported(real_lan(), tmp_path / "lan.onnx"))
    [last] = [n for n in model.graph.node if n.name.endswith("conv_6sep/prelu/Add")]
    wanted = onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(wanted)
    maxima = prelus_as_maxima(model)
    assert operations(maxima).count("Max") == 32
    assert last in maxima.graph.node


def test_the_model_given_stays_as_it_was(tmp_path: Path) -> None:
    model = onnx.load(exported(real_lan(), tmp_path / "lan.onnx"))
    before = model.SerializeToString()
    prelus_as_maxima(model)
    assert model.SerializeToString() == before


# --- int8 --------------------------------------------------------------------------------------


def crops(count: int, size: int, seed: int = 3) -> list[UInt8]:
    """Aligned-crop-like images [size,size,3]: faces of several sizes, mirrored and not."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        face = grey_face(int(rng.integers(60, 90)), size)[:, :: -1 if index % 2 else 1]
        light = face * rng.uniform(0.5, 1.2) + rng.normal(0, 3, face.shape)
        images.append(np.repeat(light.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))
    return images


@dataclass(frozen=True)
class Pair:
    """A float32 file and its int8 variant."""

    folder: Path
    plain: ExpressionModel
    int8: ExpressionModel


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("int8")
    exported(with_slopes(real_lan(), -0.3, 1.3), folder / "lan.onnx")
    quantise(folder / "lan.onnx", crops(8, 112), folder / "lan.int8.onnx")
    models = (ExpressionModel.load(folder / f"lan{end}", CPU) for end in (".onnx", ".int8.onnx"))
    return Pair(folder, *models)


def of_float(maximum: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    return any(makers[name].op_type != "QuantizeLinear" for name in maximum.input)


def test_the_int8_file_is_made_of_8_bit_convolutions(pair: Pair) -> None:
    model = onnx.load(pair.folder / "lan.int8.onnx")
    graph, names = model.graph, operations(model)
    assert names.count("QuantizeLinear") > 50
    assert names.count("Max") == 33
    constants = {i.name: float(numpy_helper.to_array(i)) for i in graph.initializer if not i.dims}
    makers = {output: node for node in graph.node for output in node.output}
    in_integers = [n for n in graph.node if n.op_type == "Max" and not of_float(n, makers)]
    assert len(in_integers) == 32  # all but the one after the image's own convolution
    for node in in_integers:
        readers = [n for n in graph.node if node.output[0] in n.input]
        users = [*(makers[name] for name in node.input), *readers]
        scales = {(constants[user.input[1]], constants[user.input[2]]) for user in users}
        assert len(scales) == 1
    sizes = [path.stat().st_size for path in sorted(pair.folder.iterdir())]
    assert [path.name for path in sorted(pair.folder.iterdir())] == ["lan.int8.onnx", "lan.onnx"]
    assert sizes[0] < 0.5 * sizes[1]


def test_the_contract_is_kept_but_for_the_name(pair: Pair) -> None:
    assert pair.int8.contract.name == "made-up-int8"
    assert pair.int8.contract == pair.plain.contract.model_copy(update={"name": "made-up-int8"})
    assert pair.plain.sha256 in pair.int8.description


def test_int8_answers_near_float32_and_its_evidence_adds_up(pair: Pair) -> None:
    images = crops(6, 112)
    before, after = pair.plain.infer(images), pair.int8.infer(images)
    spread = np.std([reading.logits for reading in before])
    for a, b in zip(before, after, strict=True):
        # Random weights enlarge what rounding does; the shipped model's are in service/.
        assert np.sqrt(np.mean((a.logits - b.logits) ** 2)) < 0.25 * spread
        assert np.abs(a.attention - b.attention).mean() < 0.1
        sums = b.evidence.mean((1, 2)) + pair.int8.contract.bias
        np.testing.assert_allclose(sums, b.logits, atol=1e-3)
        (alone,) = pair.int8.infer([images[after.index(b)]])
        np.testing.assert_allclose(alone.logits, b.logits, atol=1e-4)


def test_another_backbone_with_prelus_is_quantised(tmp_path: Path) -> None:
    path = exported(with_slopes(real_lan("iresnet18"), -0.3, 1.3), tmp_path / "lan.onnx")
    quantise(path, crops(4, 112), tmp_path / "int8.onnx")
    before, after = (ExpressionModel.load(tmp_path / f"{n}.onnx", CPU) for n in ("lan", "int8"))
    images = crops(4, 112, seed=8)
    logits = [np.array([r.logits for r in m.infer(images)]) for m in (before, after)]
    assert np.sqrt(np.mean((logits[0] - logits[1]) ** 2)) < 0.25 * logits[0].std()
    assert "Max" in operations(onnx.load(tmp_path / "int8.onnx"))


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = exported(leaky(real_lan()), tmp_path / "lan.onnx")
    quantise(path, crops(2, 112), tmp_path / "int8.onnx")
    assert "LeakyRelu" in operations(onnx.load(tmp_path / "int8.onnx"))
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_quantised_is_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="in 8-bit integers already"):
        quantise(pair.folder / "lan.int8.onnx", crops(1, 112), tmp_path / "again.onnx")
    with pytest.raises(ExportError, match="no images"):
        quantise(pair.folder / "lan.onnx", [], tmp_path / "none.onnx")
    assert not list(tmp_path.iterdir())


# --- the command -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workshop:
    """A data set in which the network of `model` is always right, and where its command works."""

    paths: RunPaths
    model: Path

    @property
    def output(self) -> Path:
        return self.model.with_suffix(".int8.onnx")

    def quantise(self, *options: str) -> tuple[int, str]:
        """The command's exit code and what it printed."""
        printed = io.StringIO()
        given = {
            "data": self.paths.data,
            "detector": self.paths.detector,
            "cache": self.paths.cache,
            "model": self.model,
            "output": self.output,
        }
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        with contextlib.redirect_stdout(printed):
            code = main(["quantise", *words, "--images", "4", *options])
        return code, printed.getvalue()

    def assert_nothing_written(self) -> None:
        assert sorted(path.suffix for path in self.model.parent.iterdir()) == [".onnx"] * len(
            list(self.model.parent.glob("*.onnx"))
        )
        assert not self.output.exists()


def pictures(count: int, seed: int) -> dict[str, UInt8]:
    return {f"fer{i:07}.png": image[..., 0] for i, image in enumerate(crops(count, 48, seed))}


def workshop(folder: Path, network: Lan, detector: Path) -> Workshop:
    """Votes are what the float32 network answers."""
    data = folder / "data"
    paths = RunPaths(data, None, detector, folder / "cache", folder / "run")
    (folder / "models").mkdir()
    model = exported(network, folder / "models" / "lan.onnx")
    for seed, split in enumerate(("train", "valid")):
        faces = pictures(10, seed)
        write_ferplus(data, split, {name: votes_for(0) for name in faces}, faces)
    (data / "test_twins.txt").write_text("")
    seen, _ = validation_crops(paths, SIZE)
    answers = assess(ExpressionModel.load(model, CPU), seen).predicted
    votes = {name: votes_for(int(a)) for name, a in zip(faces, answers, strict=True)}
    write_ferplus(data, "valid", votes, faces)
    return Workshop(paths, model)


@pytest.fixture
def sound(tmp_path: Path, detector_path: Path) -> Workshop:
    return workshop(tmp_path, enliven(tiny_lan(8)), detector_path)


def test_the_command_writes_a_file_with_its_own_figures(sound: Workshop) -> None:
    code, printed = sound.quantise("--most-loss", "50")
    assert code == 0
    model = ExpressionModel.load(sound.output, CPU)
    evaluation = assess(model, validation_crops(sound.paths, SIZE)[0])
    assert model.contract.validation_accuracy == pytest.approx(evaluation.accuracy, abs=1e-4)
    assert model.contract.temperature == pytest.approx(fit_temperature(evaluation), abs=1e-3)
    assert model.contract.name == "made-up-int8"
    assert f"\nall: 100.00% -> {100 * evaluation.accuracy:.2f}%\n" in printed
    assert "\nlargest drop: " in printed
    assert {path.name for path in sound.model.parent.iterdir()} == {"lan.onnx", "lan.int8.onnx"}


def ruined() -> Lan:
    """A network that int8 ruins: one feature that counts for nothing, far larger than the rest."""
    network = enliven(tiny_lan(8))
    bn = network.backbone.get_submodule("bn")
    assert isinstance(bn, nn.BatchNorm2d)
    with torch.no_grad():
        bn.weight[0] *= 1e5
        network.classifier.weight[:, 0] = 0
        network.get_parameter("attention.layers.0.weight")[:, 0] = 0
    return network


def test_a_loss_beyond_the_limit_is_refused(
    tmp_path: Path, detector_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = workshop(tmp_path, ruined(), detector_path)
    shop.output.write_bytes(b"an earlier one")
    assert shop.quantise("--overwrite")[0] == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "int8 loses " in line
    assert "(100.00% -> " in line
    assert "more than --most-loss 0.3; nothing written" in line
    assert shop.output.read_bytes() == b"an earlier one"
    assert len(list(shop.model.parent.iterdir())) == 2


def change_contract(path: Path, **changes: object) -> ModelContract:
    contract = ExpressionModel.load(path, CPU).contract.model_copy(update=changes)
    write_contract(path, contract)
    return contract


def test_a_model_of_all_images_is_measured_by_its_twin(sound: Workshop, tmp_path: Path) -> None:
    change_contract(sound.model, protocol="majority; training + validation", name="final")
    other = enliven(tiny_lan(8, seed=3))
    twin = exported(other, tmp_path / "twin.onnx")
    change_contract(twin, protocol="majority; training")
    code, printed = sound.quantise("--measured-by", str(twin), "--most-loss", "100")
    assert code == 0
    contract = ExpressionModel.load(sound.output, CPU).contract
    own = Workshop(sound.paths, twin)
    assert own.quantise("--most-loss", "100")[0] == 0
    measured = ExpressionModel.load(own.output, CPU).contract
    assert contract.name == "final-int8"
    assert contract.validation_accuracy == measured.validation_accuracy < 1
    assert contract.temperature == measured.temperature
    assert contract.protocol == "majority; training + validation"
    assert "on images that it has learnt from:\nall: 100.00% -> " in printed
    assert f"{twin}, float32 -> int8:\n" in printed


@pytest.mark.parametrize(
    ("protocol", "twin", "message"),
    [
        ("majority; training + validation", None, "name the file of its like"),
        ("majority; training", {}, "names one without"),
        (
            "majority; training + validation",
            {"protocol": "majority; training + validation"},
            "names one without",
        ),
        ("majority; training + validation", {"protocol": "all; training"}, "another protocol"),
        ("majority; training + validation", {"fusion": "mean"}, "another fusion"),
    ],
)
def test_a_twin_that_is_missing_or_none_is_refused(
    sound: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    protocol: str,
    twin: dict[str, str] | None,
    message: str,
) -> None:
    change_contract(sound.model, protocol=protocol)
    options = []
    if twin is not None:
        path = exported(enliven(tiny_lan(8)), tmp_path / "twin.onnx")
        change_contract(path, **{"protocol": "majority; training", **twin})
        options = ["--measured-by", str(path)]
    assert sound.quantise(*options) == (1, "")
    assert message in capsys.readouterr().err
    sound.assert_nothing_written()


def test_the_model_itself_is_not_overwritten(
    sound: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sound.model.read_bytes()
    assert sound.quantise("--output", str(sound.model), "--overwrite") == (1, "")
    assert "is the float32 file itself" in capsys.readouterr().err
    assert sound.model.read_bytes() == before
