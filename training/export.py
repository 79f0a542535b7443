"""A trained LAN -> one ONNX file that carries its contract."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from service.contract import FORMAT_VERSION, METADATA_KEY, ModelContract
from service.faces.alignment import ARCFACE_TEMPLATE, scaled_template
from service.runtime import SessionSettings, load_model
from training.config import TrainingConfig
from training.crops import MEAN, STD
from training.lan import Lan

OPSET = 17
# Largest absolute difference allowed between torch, ONNX and service, on logits, attention and
# evidence: float32 convolutions summed in another order differ by about 1e-5.
TOLERANCE = 1e-3


class ExportError(Exception):
    """The exported file does not compute what the network does."""


class LanForExport(nn.Module):
    """The trained network with the outputs that the contract names.

    Logits come from the evidence, as its mean and the bias: the same numbers, by fewer operations.
    """

    def __init__(self, network: Lan) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N,3,S,S] -> logits [N,K], attention [N,1,7,7], evidence [N,K,7,7]."""
        output = self.network(image)
        attention = output.attention
        evidence = self.network.evidence(output.feature_map, attention)
        logits = evidence.mean((2, 3)) + self.network.classifier.bias
        return logits, attention.unsqueeze(1), evidence


class SplitPReLU(nn.Module):
    """PReLU as slope * x + (1 - slope) * relu(x), the same function in operations that are fast.

    ONNX Runtime's PRelu takes two thirds of MobileFaceNet's time on a CPU.
    """

    slope: Tensor
    rest: Tensor

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        slope = prelu.weight.detach().reshape(-1, 1, 1)
        self.register_buffer("slope", slope)
        self.register_buffer("rest", 1 - slope)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> the same shape."""
        return self.slope * x + self.rest * x.relu()


def replace_prelus(network: nn.Module) -> None:
    """PReLUs become ReLUs or LeakyReLUs (which are fused) where all slopes are 0, or equal.

    The others become SplitPReLUs.
    """
    for name, module in network.named_children():
        if not isinstance(module, nn.PReLU):
            replace_prelus(module)
        elif not module.weight.any():
            setattr(network, name, nn.ReLU())
        elif bool((module.weight == module.weight[0]).all()):
            setattr(network, name, nn.LeakyReLU(module.weight[0].item()))
        else:
            setattr(network, name, SplitPReLU(module))


@dataclass(frozen=True)
class ModelFacts:
    """What the contract says beyond the network itself."""

    name: str
    run_id: str
    licence: str


def make_contract(
    network: Lan, config: TrainingConfig, provenance: dict[str, Any], facts: ModelFacts
) -> ModelContract:
    """The contract of a LAN of this package; not yet measured: accuracy 0, temperature 1."""
    size = network.backbone.input_size
    template = scaled_template(ARCFACE_TEMPLATE, size).round(4).tolist()
    return ModelContract(
        format_version=FORMAT_VERSION,
        name=facts.name,
        labels=tuple(provenance["labels"]),
        input_size=size,
        color_mode="rgb",
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        template=tuple((x, y) for x, y in template),
        temperature=1.0,
        bias=tuple(network.classifier.bias.tolist()),
        fusion=config.fusion,
        backbone=config.backbone,
        dataset=provenance["dataset"],
        protocol=provenance["protocol"],
        validation_accuracy=0.0,
        run_id=facts.run_id,
        licence=facts.licence,
    )


def export_onnx(network: Lan, contract: ModelContract, path: Path) -> None:
    """Write `path` (batch size dynamic), then check it against torch.

    Raises ExportError where a number differs by more than TOLERANCE.
    """
    exported = copy.deepcopy(network)
    replace_prelus(exported)
    wrapper = LanForExport(exported).eval().to(memory_format=torch.contiguous_format)
    size = contract.input_size
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.onnx")
    _trace(wrapper, size, temporary)
    write_contract(temporary, contract)
    difference = largest_difference(exported, temporary, size)
    if not difference <= TOLERANCE:
        temporary.unlink()
        raise ExportError(f"{path}: ONNX differs from torch by {difference:.2g}")
    temporary.replace(path)


def write_contract(path: Path, contract: ModelContract) -> None:
    """Put `contract` into the metadata of the ONNX file at `path`, in place of what was there."""
    model = onnx.load(path)
    entry = {METADATA_KEY: json.dumps(contract.model_dump(mode="json"))}
    onnx.helper.set_model_props(model, entry)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _trace(wrapper: LanForExport, size: int, path: Path) -> None:
    with warnings.catch_warnings():
        # That this exporter is the older of torch's two is known, and said here alone.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            wrapper,
            (torch.zeros(2, 3, size, size),),
            str(path),
            input_names=["image"],
            output_names=["logits", "attention", "evidence"],
            dynamic_axes={n: {0: "faces"} for n in ("image", "logits", "attention", "evidence")},
            opset_version=OPSET,
            dynamo=False,
        )


def largest_difference(network: Lan, path: Path, size: int) -> float:
    """Largest absolute difference between the network's own outputs and the file's.

    `network`, in evaluation, and the file answer three random images.
    """
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = network(images)
        evidence = network.evidence(output.feature_map, output.attention)
    expected = (output.logits, output.attention.unsqueeze(1), evidence)
    session = load_model(path, SessionSettings("cpu")).session
    actual = session.run(["logits", "attention", "evidence"], {"image": images.numpy()})
    gaps = [(torch.from_numpy(a) - e).abs().max() for a, e in zip(actual, expected, strict=True)]
    return torch.stack(gaps).max().item()  # NaN where any is; the built-in max may pass one over
