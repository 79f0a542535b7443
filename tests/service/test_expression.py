"""The expression model as shipped, and files that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from service.contract import METADATA_KEY
from service.errors import InferenceError, ModelContractError, ModelFileError
from service.expression import ExpressionModel, softmax
from service.faces.face import Face
from service.pipeline import Networks
from service.runtime import SessionSettings
from service.settings import Settings

CPU = SessionSettings("cpu")
# A batch, a single run and a crowd may differ by the order of float32 sums.
TOLERANCE = 1e-4

UInt8 = NDArray[np.uint8]


@pytest.fixture(scope="module")
def face(networks: Networks, portrait: UInt8) -> Face:
    return networks.detector.detect(portrait)[0]


@pytest.fixture(scope="module")
def crop(networks: Networks, portrait: UInt8, face: Face) -> UInt8:
    return networks.classifier.crop(portrait, face)


def test_a_smile_is_read_as_happiness(networks: Networks, crop: UInt8) -> None:
    (reading,) = networks.classifier.infer([crop])
    labels = networks.classifier.contract.labels
    assert labels[int(reading.probabilities.argmax())] == "happiness"


def test_outputs_have_the_promised_shapes_and_ranges(networks: Networks, crop: UInt8) -> None:
    (reading,) = networks.classifier.infer([crop])
    classes = len(networks.classifier.contract.labels)
    assert reading.logits.shape == reading.probabilities.shape == (classes,)
    assert reading.attention.shape == (7, 7)
    assert reading.evidence.shape == (classes, 7, 7)
    assert ((reading.attention >= 0) & (reading.attention <= 1)).all()
    assert reading.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_evidence_adds_up_to_the_logits(networks: Networks, crop: UInt8) -> None:
    (reading,) = networks.classifier.infer([crop])
    total = reading.evidence.mean((1, 2)) + np.array(networks.classifier.contract.bias)
    np.testing.assert_allclose(total, reading.logits, atol=TOLERANCE)


def test_a_batch_gives_what_single_runs_give(networks: Networks, crop: UInt8) -> None:
    crops = [crop, np.ascontiguousarray(crop[:, ::-1]), crop // 2, 255 - crop]
    for picture, reading in zip(crops, networks.classifier.infer(crops), strict=True):
        (alone,) = networks.classifier.infer([picture])
        np.testing.assert_allclose(reading.logits, alone.logits, atol=TOLERANCE)
        np.testing.assert_allclose(reading.attention, alone.attention, atol=TOLERANCE)
        np.testing.assert_allclose(reading.evidence, alone.evidence, atol=TOLERANCE)


def test_colour_order_matters(networks: Networks, crop: UInt8) -> None:
    rgb, bgr = networks.classifier.infer([crop, np.ascontiguousarray(crop[..., ::-1])])
    assert np.abs(rgb.logits - bgr.logits).max() > 100 * TOLERANCE


def test_the_crop_has_eyes_on_the_template(networks: Networks, portrait: UInt8, face: Face) -> None:
    contract = networks.classifier.contract
    matrix = networks.classifier.transform(face)
    placed = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(placed - np.array(contract.template)).mean() < 5
    size = contract.input_size
    assert networks.classifier.crop(portrait, face).shape == (size, size, 3)


def test_landmarks_in_one_point_are_an_error_not_a_crash(
    networks: Networks, portrait: UInt8
) -> None:
    face = Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0)
    with pytest.raises(InferenceError, match="coincide"):
        networks.classifier.crop(portrait, face)


def test_temperature_softens_without_reordering() -> None:
    logits = np.array([3.0, 1.0, 0.0], np.float32)
    sharp, soft = softmax(logits, 0.5), softmax(logits, 4.0)
    assert sharp[0] > soft[0] > soft[1] > soft[2]
    assert softmax(logits * 1000, 1.0)[0] == 1


Damage = Callable[[onnx.ModelProto], None]


def damaged(tmp_path: Path, damage: Damage) -> Path:
    model = onnx.load(Settings().model_path)
    damage(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_a_file_without_a_contract_is_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path, lambda model: model.ClearField("metadata_props"))
    with pytest.raises(ModelContractError, match=f"no metadata entry '{METADATA_KEY}'"):
        ExpressionModel.load(path, CPU)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights.flat[0] = np.nan
        poisoned = numpy_helper.from_array(weights, model.graph.initializer[0].name)
        model.graph.initializer[0].CopyFrom(poisoned)

    with pytest.raises(ModelContractError, match="NaN or infinite"):
        ExpressionModel.load(damaged(tmp_path, poison), CPU)


@pytest.mark.parametrize("output", ["attention", "evidence"])
def test_numbers_that_are_not_finite_are_no_answer(tmp_path: Path, output: str) -> None:
    """Sound on what it is tried with at its start, then not: the logarithm of a bright photo."""

    def spoil(model: onnx.ModelProto) -> None:
        graph = model.graph
        next(node for node in graph.node if output in node.output).output[0] = "sound"
        limit = numpy_helper.from_array(np.array(0.9, np.float32), "limit")
        graph.initializer.append(limit)
        graph.node.extend(
            [
                helper.make_node("ReduceMean", ["image"], ["brightness"], keepdims=0),
                helper.make_node("Sub", ["limit", "brightness"], ["rest"]),
                helper.make_node("Log", ["rest"], ["log"]),
                helper.make_node("Mul", ["log", "sound"], [output]),
            ]
        )

    model = ExpressionModel.load(damaged(tmp_path, spoil), CPU)
    size = model.contract.input_size
    assert model.infer([np.zeros((size, size, 3), np.uint8)])
    with pytest.raises(InferenceError, match="not finite"):
        model.infer([np.full((size, size, 3), 255, np.uint8)])


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path, lambda model: model.graph.output.pop())
    with pytest.raises(ModelContractError, match=r"expected input \['image'\] and outputs"):
        ExpressionModel.load(path, CPU)


def test_a_contract_for_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    def relabel(model: onnx.ModelProto) -> None:
        entry = next(e for e in model.metadata_props if e.key == METADATA_KEY)
        entry.value = entry.value.replace('"neutral", ', "", 1)

    with pytest.raises(ModelContractError, match="bias has 8 values for 7 labels"):
        ExpressionModel.load(damaged(tmp_path, relabel), CPU)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent.onnx: cannot read the model file"):
        ExpressionModel.load(tmp_path / "absent.onnx", CPU)


@pytest.mark.parametrize("kept", [0, 10, 100_000])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "short.onnx"
    path.write_bytes(Settings().model_path.read_bytes()[:kept])
    with pytest.raises((ModelFileError, ModelContractError), match=r"short\.onnx") as refusal:
        ExpressionModel.load(path, CPU)
    assert "\n" not in str(refusal.value)
