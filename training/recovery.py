"""An exported ONNX file -> the network it was exported from, ready to be trained further."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from service.contract import parse_contract
from service.errors import ServiceError
from training.backbones import CheckpointError, load_backbone
from training.export import TOLERANCE, largest_difference
from training.lan import Lan

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RecoveredModel:
    """A network that answers as its file does, and what the file's contract says of it."""

    network: Lan
    labels: tuple[str, ...]
    backbone: str
    fusion: str


def recover(path: Path) -> RecoveredModel:
    """The network in an ONNX file that `export` wrote.

    The file has each BatchNorm folded into its convolution. Here the convolution keeps the folded
    weights and its BatchNorm adds the bias alone; `settle` before training.
    Raises CheckpointError where the file is missing, has no contract or holds another graph, and
    for a backbone with BatchNorms that no convolution goes before (IResNet).
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file (ONNX, written by export)")
    try:
        model = onnx.load(path)
        contract = parse_contract({p.key: p.value for p in model.metadata_props}, str(path))
    except (ServiceError, ValueError) as error:
        raise CheckpointError(f"{path}: no model of this package ({error})") from error
    except Exception as error:  # protobuf's DecodeError has no public name
        raise CheckpointError(f"{path}: not an ONNX file ({error})") from error
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise CheckpointError(
            f"{path}: is the 8-bit file; name the float32 one that it was made from "
            "(X.onnx for X.int8.onnx)"
        )
    backbone = load_backbone(contract.backbone, None)
    network = Lan(backbone, len(contract.labels), fusion=contract.fusion).eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if len(norms) > len(list(_folded(network))):
        raise CheckpointError(
            f"{path}: {contract.backbone} cannot be taken back from its file; name its run"
        )
    try:
        _fill(network, model.graph)
    except (LookupError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: another network than its contract says") from error
    difference = largest_difference(network, path, contract.input_size)
    if not difference <= TOLERANCE:
        raise CheckpointError(f"{path}: taken back, its answers differ by {difference:.2g}")
    return RecoveredModel(network, contract.labels, contract.backbone, contract.fusion)


@torch.no_grad()
def fold(network: Lan) -> Lan:
    """A copy that answers alike in evaluation, each BatchNorm's scale in its convolution's weights.

    As in an exported file and what `recover` makes of it: the BatchNorm adds the bias alone.
    """
    folded = copy.deepcopy(network).eval()
    for conv, bn in _folded(folded):
        scale, shift = _affine(bn)
        conv.weight.mul_(scale[:, None, None, None])
        _only_bias(bn, shift)
    return folded


def _only_bias(bn: nn.BatchNorm2d, bias: Tensor) -> None:
    """Make a BatchNorm that adds `bias` [C] in evaluation."""
    nn.init.ones_(bn.weight)
    bn.bias.copy_(bias)
    nn.init.zeros_(bn.running_mean)  # type: ignore[arg-type]
    nn.init.constant_(bn.running_var, 1 - bn.eps)  # type: ignore[arg-type]


@torch.no_grad()
def settle(network: Lan, images: Iterable[Tensor]) -> None:
    """Give each BatchNorm after a convolution its statistics over `images` [N,3,S,S], normalised.

    In evaluation the network computes what it did; in training, where batches are normalised by
    their own statistics, nearly that. Each filter gets the size of a fresh one, since the rate at
    which an optimiser changes a filter depends on its size.
    """
    pairs = list(_folded(network))
    sums = [torch.zeros(2, bn.num_features, dtype=torch.float64) for _, bn in pairs]
    counts = [0] * len(pairs)

    def watch(index: int) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, __: object, output: Tensor) -> None:
            values = output.double().transpose(0, 1).flatten(1)
            sums[index] += torch.stack((values.sum(1), values.square().sum(1)))
            counts[index] += values.shape[1]

        return pairs[index][0].register_forward_hook(add)

    handles = [watch(index) for index in range(len(pairs))]
    network.eval()
    for batch in images:
        network(batch)
    for handle in handles:
        handle.remove()
    for (conv, bn), total, count in zip(pairs, sums, counts, strict=True):
        average, square = total / count
        mean, variance = average.float(), (square - average.square()).clamp(min=0).float()
        filters = conv.weight.flatten(1)
        # Root mean square of 1 / sqrt(fan-in), as a fresh filter has.
        size = filters.norm(dim=1).clamp(min=1e-12)
        conv.weight.div_(size[:, None, None, None])
        scale, shift = _affine(bn)
        bn.bias.copy_(shift + scale * mean)
        bn.running_mean.copy_(mean / size)  # type: ignore[union-attr]
        bn.running_var.copy_(variance / size.square())  # type: ignore[union-attr]
        bn.weight.copy_(scale * size * (variance / size.square() + bn.eps).sqrt())


def _affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation: scale [C], shift [C]."""
    mean, variance = bn.running_mean, bn.running_var
    if mean is None or variance is None:
        raise ValueError("a BatchNorm without statistics cannot have been folded")
    scale = bn.weight / (variance + bn.eps).sqrt()
    return scale, bn.bias - scale * mean


def _folded(network: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions without bias and the BatchNorm behind each: what export folds."""
    for conv, bn in itertools.pairwise(network.modules()):
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d) and conv.bias is None:
            yield conv, bn


@torch.no_grad()
def _fill(network: Lan, graph: onnx.GraphProto) -> None:
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    normalised = dict(_folded(network))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    nodes, evidence = nodes[: len(convolutions)], nodes[len(convolutions) :]
    for conv, node in zip(convolutions, nodes, strict=True):
        _copy(conv.weight, arrays[node.input[1]])
        if bn := normalised.get(conv):
            _only_bias(bn, torch.from_numpy(np.array(arrays[node.input[2]])))
        elif conv.bias is not None:
            _copy(conv.bias, arrays[node.input[2]])
    by_convolution = dict(zip(convolutions, nodes, strict=True))
    for conv, prelu in _activated(network):
        slope = _slope(by_convolution[conv].output[0], graph, arrays)
        _copy(prelu.weight, np.broadcast_to(slope.reshape(-1), prelu.weight.shape))
    scores = [arrays[node.input[1]][:, :, 0, 0] for node in evidence]  # of F_o, and of F_a if apart
    weight = np.concatenate(scores, 1) if network.fusion == "concat" else scores[0]
    _copy(network.classifier.weight, 2 * weight if network.fusion == "mean" else weight)
    _copy(network.classifier.bias, arrays["network.classifier.bias"])


def _activated(network: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.PReLU]]:
    """Every PReLU and the convolution before it."""
    conv: nn.Conv2d | None = None
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            conv = module
        elif isinstance(module, nn.PReLU) and conv is not None:
            yield conv, module


def _slope(name: str, graph: onnx.GraphProto, arrays: dict[str, Array]) -> Array:
    """Of the PReLU that reads the value `name`, in whichever of its forms it was exported."""
    readers = {node.op_type: node for node in graph.node if name in node.input}
    if "PRelu" in readers:
        return arrays[readers["PRelu"].input[1]]
    if "LeakyRelu" in readers:
        alpha = [a.f for a in readers["LeakyRelu"].attribute if a.name == "alpha"]
        return np.array(alpha, np.float32)
    if "Mul" in readers:
        return arrays[readers["Mul"].input[0]]
    if "Relu" in readers:
        return np.zeros(1, np.float32)
    raise ValueError(f"{name} has no activation")


def _copy(target: Tensor, source: Array) -> None:
    if tuple(target.shape) != source.shape:
        raise ValueError(f"{tuple(target.shape)} is not {source.shape}")
    target.copy_(torch.from_numpy(np.array(source)))
