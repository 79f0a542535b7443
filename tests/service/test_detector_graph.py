"""The face detector in fewer operations: it computes what it did."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service.detector_graph import simplify
from service.settings import Settings

OPSET = 13


@pytest.fixture(scope="module")
def given() -> onnx.ModelProto:
    return onnx.version_converter.convert_version(onnx.load(Settings().detector_path), OPSET)


@pytest.fixture(scope="module")
def simple(given: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(given)
    simplify(model)
    return model


@pytest.mark.parametrize("shape", [(1, 3, 160, 256), (2, 3, 192, 192)])
def test_outputs_are_the_same(
    given: onnx.ModelProto, simple: onnx.ModelProto, shape: tuple[int, ...]
) -> None:
    batch = np.random.default_rng(0).normal(scale=60, size=shape).astype(np.float32)
    before, after = (
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            ["loc", "conf", "landmarks"], {"input": batch}
        )
        for model in (given, simple)
    )
    for was, now in zip(before, after, strict=True):
        np.testing.assert_allclose(now, was, atol=1e-4)


def test_it_has_one_head_a_level_and_no_sizes_to_compute(
    given: onnx.ModelProto, simple: onnx.ModelProto
) -> None:
    before, after = (Counter(n.op_type for n in m.graph.node) for m in (given, simple))
    assert before["Conv"] - after["Conv"] == 6
    assert {"Shape", "Gather", "Softmax"} <= before.keys() - after.keys()


def test_another_network_is_an_error() -> None:
    with pytest.raises(KeyError, match="class_head"):
        simplify(onnx.load(Settings().model_path))
