"""An exported float32 network -> the same network in 8-bit integers, for CPUs with VNNI."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

from service.contract import int8_description
from service.expression import ExpressionModel
from service.runtime import SessionSettings
from training.export import ExportError, write_contract

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

SUFFIX = "-int8"
OPERATIONS = ("Conv", "Add", "Relu", "LeakyRelu")
# What is kept with the first convolution, and what a sum in 8 bits adds up.
ACTIVATIONS = ("Relu", "LeakyRelu", "Add", "Mul", "Max")
SUMMED = {"Conv", "Add", "Relu", "LeakyRelu"}
# Of the names of a PReLU's nodes, after its convolution's.
BELOW_ZERO, LARGER = "_below_zero", "_larger"
BATCH = 8
# ONNX Runtime's severities of log lines: it warns of each initializer that it finds unused, which
# is hundreds of lines.
WARNING, ERROR = 2, 3


def quantise(path: Path, images: Sequence[UInt8], output: Path) -> None:
    """Write `output`: the network of `path` in 8-bit integers, with its contract but for the name.

    Scales of activations come from `images`, aligned crops [S,S,3] uint8 RGB. The first convolution
    stays float32, and so does evidence, whose mean the logits are.
    The contract's accuracy and temperature are those of `path`, to be measured anew.
    Raises ExportError where `path` is quantised already or there are no images, and what
    ExpressionModel.load raises.
    """
    model = ExpressionModel.load(path, SessionSettings("cpu"))
    given = onnx.load(path)
    if any(node.op_type == "QuantizeLinear" for node in given.graph.node):
        raise ExportError(f"{path}: is in 8-bit integers already")
    if not images:
        raise ExportError(f"{path}: no images to take the scales of activations from")
    name = model.contract.name + SUFFIX
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=output.parent) as folder, _quiet():
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        ranges = Path(folder) / "ranges.json"
        quant_pre_process(prelus_as_maxima(given), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        float_nodes = _float_nodes(graph)
        # Once for the ranges alone, of which those of a maximum are then shared.
        _quantise_static(prepared, written, float_nodes, ranges, _Crops(model, images))
        maxima = [n for n in graph.node if n.name.endswith(LARGER) and n.name not in float_nodes]
        ranges.write_text(_share_ranges(ranges.read_text(), maxima))
        _quantise_static(prepared, written, float_nodes, ranges)
        finished = onnx.load(written)
        _take_in_integers(finished.graph, {node.name for node in maxima})
        finished.doc_string = int8_description(model.sha256)
        onnx.save(finished, written)
        write_contract(written, model.contract.model_copy(update={"name": name}))
        written.replace(output)


def _quantise_static(
    given: Path,
    written: Path,
    float_nodes: Sequence[str],
    ranges: Path,
    crops: _Crops | None = None,
) -> None:
    """The file `given` in 8 bits; ranges of activations are measured on `crops`, else read."""
    quantize_static(
        given,
        written,
        crops,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPERATIONS),
        nodes_to_exclude=list(float_nodes),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Of the batches' extremes: with those of all images, scales hang on a few outliers.
        extra_options={"CalibMovingAverage": True},
        calibration_cache_path=ranges,
    )


class _Crops:
    """Feeds crops to the calibration as the service feeds the network."""

    def __init__(self, model: ExpressionModel, images: Sequence[UInt8]) -> None:
        starts = range(0, len(images), BATCH)
        self._batches = (model.batch(images[start : start + BATCH]) for start in starts)

    def get_next(self) -> dict[str, Float32] | None:
        """The next batch [N,3,S,S] by the input's name, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of what stays float32: the image's own convolution, evidence and what comes of it.

    The first with its activation: in 8 bits it costs the most accuracy and gains no time.
    """
    image = graph.input[0].name
    makers = {output: node for node in graph.node for output in node.output}
    first = [node.name for node in graph.node if node.op_type == "Conv" and node.input[0] == image]
    names = []
    for node in graph.node:
        before = [makers[name] for name in node.input if name in makers]
        activates = node.op_type in ACTIVATIONS or node.name.endswith(BELOW_ZERO)
        if before and activates and all(maker.name in first for maker in before):
            first.append(node.name)
            continue
        product = node.op_type == "Mul"
        sum_of_others = node.op_type == "Add" and not {m.op_type for m in before} <= SUMMED
        if product or sum_of_others:
            names.append(node.name)
        if product and len(before) == 2:  # evidence times attention
            names += [maker.name for maker in before if maker.op_type == "Conv"]
    return [*first, *names]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of sessions that have no level of their own."""
    ort.set_default_logger_severity(ERROR)
    try:
        yield
    finally:
        ort.set_default_logger_severity(WARNING)


# --- PReLU ---------------------------------------------------------------------------------------


def prelus_as_maxima(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, with the PReLU of a convolution as the larger of x and slope * x.

    An exported PReLU is slope * x + rest * relu(x), which in 8 bits would be four operations.
    Where the slope is above 1 it is the smaller one: there the convolution's sign is turned, and
    the convolutions that read it have the sign in their weights. A PReLU that others read too stays
    as it is, and so does a file without any.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    view = _View(graph)
    prelus = [prelu for node in graph.node if (prelu := _find_prelu(node, view))]
    if not prelus:
        return result
    by_convolution = {prelu.nodes[0].output[0]: prelu for prelu in prelus}
    signs = {prelu.output: prelu.sign for prelu in prelus}
    gone = {node.output[0] for prelu in prelus for node in prelu.nodes}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] in signs:
            view.sign_inputs(node, signs[node.input[0]])
        if prelu := by_convolution.get(node.output[0]):
            nodes += _as_maximum(prelu, view.arrays)
        elif node.output[0] not in gone:
            nodes.append(node)
    _fill(graph, nodes, view.arrays)
    return result


def _fill(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], arrays: dict[str, Float32]
) -> None:
    """Give `graph` these nodes, and of `arrays` what they read."""
    _set_nodes(graph, nodes)
    del graph.initializer[:]
    for name in dict.fromkeys(name for node in graph.node for name in node.input):
        if name in arrays:
            graph.initializer.append(numpy_helper.from_array(arrays[name], name))


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = onnx.GraphProto(node=nodes)  # those of `graph` go now
    del graph.node[:]
    graph.node.extend(copies.node)


class _View:
    """Who makes and who reads each value of a graph, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.arrays: dict[str, Float32] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        for output in graph.output:
            self._readers[output.name].append(onnx.NodeProto())

    def maker(self, name: str) -> onnx.NodeProto:
        """The node that computes a value; an empty one where it is given."""
        return self._makers.get(name) or onnx.NodeProto()

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a value; an empty one stands for the graph's caller."""
        return self._readers[name]

    def number(self, name: str) -> float:
        """A constant of one value."""
        return float(self.arrays[name])

    def takes_sign(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether `node` is a convolution of the value `name` with constant weights."""
        return node.op_type == "Conv" and node.input[0] == name and node.input[1] in self.arrays

    def sign_inputs(self, convolution: onnx.NodeProto, sign: Float32) -> None:
        """Multiply the weights by the sign [C] of the channel that they read."""
        weights = self.arrays[convolution.input[1]]
        groups = next((a.i for a in convolution.attribute if a.name == "group"), 1)
        grouped = weights.reshape(groups, -1, *weights.shape[1:])
        signed = grouped * sign.reshape(groups, 1, -1, 1, 1)
        name = convolution.output[0] + "_signed"  # of its own: weights may be shared
        convolution.input[1] = name
        self.arrays[name] = signed.reshape(weights.shape)


@dataclass(frozen=True, eq=False)
class _PReLU:
    """A convolution to C channels and the PReLU after it."""

    slope: Float32
    """[C]."""
    nodes: tuple[onnx.NodeProto, ...]
    """Convolution, relu, both multiplications, sum."""

    @property
    def sign(self) -> Float32:
        """[C] 1 or -1: the maximum is the PReLU's output times this."""
        return np.where(self.slope > 1, -1, 1).astype(np.float32)

    @property
    def output(self) -> str:
        """The name of what it gives."""
        return str(self.nodes[-1].output[0])


def _find_prelu(total: onnx.NodeProto, view: _View) -> _PReLU | None:
    """The PReLU that ends in the sum `total`, where convolutions alone read it; else None."""
    if total.op_type != "Add":
        return None
    slope, rest = (view.maker(name) for name in total.input)
    if (slope.op_type, rest.op_type) != ("Mul", "Mul"):
        return None
    conv, relu = view.maker(slope.input[1]), view.maker(rest.input[1])
    if (conv.op_type, relu.op_type) != ("Conv", "Relu") or relu.input[0] != conv.output[0]:
        return None
    nodes = (conv, relu, slope, rest, total)
    known = {conv.input[1], slope.input[0], rest.input[0]} <= view.arrays.keys()
    unseen = [len(view.readers(node.output[0])) for node in nodes[:-1]] == [2, 1, 1, 1]
    readers = view.readers(total.output[0])
    if not known or not unseen or not all(view.takes_sign(n, total.output[0]) for n in readers):
        return None
    slopes, rests = (view.arrays[node.input[0]].reshape(-1) for node in (slope, rest))
    if not np.allclose(slopes + rests, 1, atol=1e-5):  # of x above 0: no PReLU
        return None
    return _PReLU(slopes, nodes)


def _as_maximum(prelu: _PReLU, arrays: dict[str, Float32]) -> list[onnx.NodeProto]:
    """The three nodes in place of the five, times the PReLU's sign; constants go to `arrays`."""
    conv = prelu.nodes[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    weights = arrays[conv.input[1]]
    bias = arrays[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(weights), np.float32)
    turned, below = f"{conv.output[0]}_turned", f"{conv.output[0]}{BELOW_ZERO}"
    arrays[f"{turned}_weights"] = weights * prelu.sign.reshape(-1, 1, 1, 1)
    arrays[f"{turned}_bias"] = bias * prelu.sign
    # A convolution of each channel by itself: QLinearMul takes twice as long, and rounds slopes.
    arrays[f"{below}_slope"] = prelu.slope.reshape(-1, 1, 1, 1)
    inputs = [conv.input[0], f"{turned}_weights", f"{turned}_bias"]
    larger = f"{conv.output[0]}{LARGER}"
    return [
        helper.make_node("Conv", inputs, [turned], name=turned, **attributes),
        helper.make_node(
            "Conv",
            [turned, f"{below}_slope"],
            [below],
            name=below,
            group=len(prelu.slope),
            kernel_shape=[1, 1],
        ),
        helper.make_node("Max", [turned, below], [prelu.output], name=larger),
    ]


def _share_ranges(cache: str, maxima: Iterable[onnx.NodeProto]) -> str:
    """A calibration's JSON, with one range for what a PReLU's maximum takes and gives.

    Of numbers on one scale, the larger is that of the integers. The range is that of x and the
    maximum; where slope * x is below it, it is not the larger one.
    """
    read = json.loads(cache)
    for node in maxima:
        x, below, larger = (read["data"][name] for name in (*node.input, *node.output))
        lowest = min(x["lowest"]["data"], larger["lowest"]["data"])
        highest = max(x["highest"]["data"], larger["highest"]["data"])
        for each in (x, below, larger):
            each["lowest"]["data"], each["highest"]["data"] = lowest, highest
    return json.dumps(read)


def _take_in_integers(graph: onnx.GraphProto, maxima: Collection[str]) -> None:
    """Let these nodes read and give 8-bit integers, without a detour by float32.

    Raises ExportError where their inputs and output are not on one scale.
    """
    view = _View(graph)
    gone: set[str] = set()
    for node in graph.node:
        if node.name in maxima:
            given = [view.maker(name) for name in node.input]
            readers = view.readers(node.output[0])
            both = [*given, *readers]
            operations = [n.op_type for n in both]
            scales = {tuple(view.number(name) for name in n.input[1:3]) for n in both}
            if operations != ["DequantizeLinear"] * 2 + ["QuantizeLinear"] or len(scales) != 1:
                raise ExportError(f"{node.name}: what it takes and gives is not on one scale")
            gone.add(readers[0].name)
            gone.update(g.name for g in given if len(view.readers(g.output[0])) == 1)
            node.input[:] = [dequantised.input[0] for dequantised in given]
            node.output[:] = readers[0].output
    _set_nodes(graph, [node for node in graph.node if node.name not in gone])
