"""The two networks as a plain wrapper runs them: float32, one image and one face a call.

The detector sees the photo at its own size. The expression network has its activations as they
were published and trained (PReLU): the shipped file holds the same function in operations that
ONNX Runtime runs faster, and here that is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from service.contract import ModelContract, parse_contract
from service.faces.alignment import similarity_transform

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
VARIANCES = (0.1, 0.2)
MIN_SCORE, NMS_IOU = 0.7, 0.4


def make_session(model: bytes | str, threads: int) -> ort.InferenceSession:
    """A session on the CPU, ONNX Runtime's defaults but for `threads` (0: its own choice)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def with_prelu(model: ModelProto) -> ModelProto:
    """The same function with every LeakyRelu, or slope * x + rest * relu(x), as a PRelu."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    replaced: dict[str, NodeProto] = {}
    for node in graph.node:
        if node.op_type == "LeakyRelu":
            channels = _channels(makers[node.input[0]], values)
            alpha = next((a.f for a in node.attribute if a.name == "alpha"), 0.01)
            slope = np.full((channels, 1, 1), alpha, np.float32)
        elif (split := _split_prelu(node, makers, values)) is not None:
            slope = split
        else:
            continue
        name = f"{node.output[0]}_slope"
        graph.initializer.append(numpy_helper.from_array(slope, name))
        source = node.input[0] if node.op_type == "LeakyRelu" else _source(node, makers)
        replaced[node.output[0]] = helper.make_node("PRelu", [source, name], list(node.output))
    nodes = [replaced.get(node.output[0], node) for node in graph.node]
    del graph.node[:]
    graph.node.extend(_used(nodes, [output.name for output in graph.output]))
    onnx.checker.check_model(model)
    return model


def _channels(conv: NodeProto, values: dict[str, NDArray[np.generic]]) -> int:
    return int(values[conv.input[1]].shape[0])


def _split_prelu(
    node: NodeProto, makers: dict[str, NodeProto], values: dict[str, NDArray[np.generic]]
) -> Float32 | None:
    """The slopes [C,1,1] where `node` adds slope * x and rest * relu(x), else None."""
    factors = [makers.get(name) for name in node.input]
    if node.op_type != "Add" or any(f is None or f.op_type != "Mul" for f in factors):
        return None
    for factor in factors:
        assert factor is not None
        constant = next((n for n in factor.input if n in values), None)
        other = makers.get(next(n for n in factor.input if n != constant))
        if constant is not None and (other is None or other.op_type != "Relu"):
            return np.asarray(values[constant], np.float32)
    return None


def _source(node: NodeProto, makers: dict[str, NodeProto]) -> str:
    relu = next(
        makers[name]
        for factor in (makers[n] for n in node.input)
        for name in factor.input
        if name in makers and makers[name].op_type == "Relu"
    )
    return str(relu.input[0])


def _used(nodes: list[NodeProto], wanted: list[str]) -> list[NodeProto]:
    """The nodes, in order, that the outputs `wanted` depend on."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


@dataclass(frozen=True, eq=False)
class FoundFace:
    """One face in pixels of the photo: box [4], landmarks [5,2], score 0..1."""

    box: Float32
    landmarks: Float32
    score: float


class Detector:
    """RetinaFace on the photo at its own size."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = make_session(str(path), threads)
        self._anchors: dict[tuple[int, int], Float32] = {}

    def detect(self, image: UInt8) -> list[FoundFace]:
        """Faces of `image` [H,W,3] uint8 BGR, largest first."""
        blob = (image.astype(np.float32) - (104, 117, 123)).transpose(2, 0, 1)[None]
        batch = np.ascontiguousarray(blob, np.float32)
        loc, conf, points = self._session.run(None, {"input": batch})
        anchors = self._anchors_of(image.shape[0], image.shape[1])
        centre, side = anchors[:, :2], anchors[:, 2:]
        centres = centre + loc[0, :, :2] * VARIANCES[0] * side
        sizes = side * np.exp(loc[0, :, 2:] * VARIANCES[1])
        boxes = np.concatenate((centres - sizes / 2, centres + sizes / 2), 1)
        landmarks = centre[:, None] + points[0].reshape(-1, 5, 2) * VARIANCES[0] * side[:, None]
        scores = conf[0, :, 1]
        kept = np.flatnonzero(scores > MIN_SCORE)
        xywh = np.concatenate((boxes[kept, :2], sizes[kept]), 1)
        best = cv2.dnn.NMSBoxes(xywh.tolist(), scores[kept].tolist(), MIN_SCORE, NMS_IOU)
        found = [FoundFace(boxes[i], landmarks[i], float(scores[i])) for i in kept[list(best)]]
        return sorted(found, key=lambda f: -float((f.box[2:] - f.box[:2]).prod()))

    def _anchors_of(self, height: int, width: int) -> Float32:
        """[A,3]: centre x, centre y, side; kept for each size, as a plain wrapper would."""
        if (height, width) not in self._anchors:
            levels = []
            for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
                ys, xs = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)]
                centres = (np.stack((xs, ys), -1).reshape(-1, 1, 2) + 0.5) * stride
                both = [np.insert(centres, 2, s, axis=2) for s in sides]
                levels.append(np.concatenate(both, 1).reshape(-1, 3))
            self._anchors[height, width] = np.concatenate(levels).astype(np.float32)
        return self._anchors[height, width]


class Classifier:
    """The LAN, one face a call."""

    def __init__(self, path: Path, threads: int, *, published: bool) -> None:
        """`published` runs it with PReLU, else the file runs as it is."""
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.contract: ModelContract = parse_contract(metadata, str(path))
        network = with_prelu(model) if published else model
        self._session = make_session(network.SerializeToString(), threads)

    def read(self, image: UInt8, landmarks: Float32) -> tuple[Float32, Float32]:
        """Probabilities [K] and attention [7,7] of a face of `image` [H,W,3] uint8 BGR."""
        size = self.contract.input_size
        matrix = similarity_transform(landmarks, self.contract.template)
        crop = cv2.cvtColor(cv2.warpAffine(image, matrix, (size, size)), cv2.COLOR_BGR2RGB)
        pixels = (crop - np.array(self.contract.mean)) / np.array(self.contract.std)
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        logits, attention = self._session.run(["logits", "attention"], {"image": batch})
        scaled = np.exp((logits[0] - logits[0].max()) / self.contract.temperature)
        return np.asarray(scaled / scaled.sum(), np.float32), attention[0, 0]
