"""Backbones: feature maps, published key names and references, and clear refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from tests.training.made_up import ROOT, clouds
from training.backbones import BACKBONES, CheckpointError, load_backbone
from training.backbones.iresnet import IResNet
from training.backbones.mobilefacenet import MobileFaceNet, load_mobilefacenet, reference_error
from training.backbones.resnet import ResNet18, load_resnet18

WEIGHTS_VARIABLE = "MOBILEFACENET_WEIGHTS"
USUAL_WEIGHTS = ROOT.parent / "shared/data/mobilefacenet/mobilefacenet_ms1m.safetensors"


@pytest.mark.parametrize(
    ("name", "size"), [("mobilefacenet", 112), ("resnet18", 224), ("iresnet18", 112)]
)
def test_gives_512_channels_on_a_7x7_grid(name: str, size: int) -> None:
    backbone = load_backbone(name, None).eval()
    assert (backbone.input_size, backbone.feature_channels) == (size, 512)
    with torch.no_grad():
        assert backbone(clouds(2, size)).shape == (2, 512, 7, 7)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="'vgg' is unknown; one of mobilefacenet, resnet18"):
        load_backbone("vgg", None)


@pytest.mark.parametrize("name", BACKBONES)
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.bin: no such file"):
        load_backbone(name, tmp_path / "absent.bin")


# --- IResNet -----------------------------------------------------------------------------------


def test_iresnet_loads_arcfaces_layout_and_drops_its_head(tmp_path: Path) -> None:
    source = IResNet((2, 2, 2, 2))
    nn.init.uniform_(source.get_parameter("layer3.1.prelu.weight"))
    state = source.state_dict()
    for name in ("conv1.weight", "prelu.weight", "layer1.0.bn1.weight", "layer4.1.bn3.bias"):
        assert name in state
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    head = {"fc.weight": torch.zeros(512, 25088), "features.bias": torch.zeros(512)}
    torch.save(state | head, tmp_path / "ir18.pth")
    loaded = load_backbone("iresnet18", tmp_path / "ir18.pth").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    with pytest.raises(CheckpointError, match=r"does not fit IResNet \(missing: layer1\.2"):
        load_backbone("iresnet50", tmp_path / "ir18.pth")


def test_iresnet50_has_the_published_size() -> None:
    # ArcFace's R50 has 43.59 M parameters, 12.85 M and 1,024 of them in its head.
    count = sum(p.numel() for p in load_backbone("iresnet50", None).parameters())
    assert round(count / 1e6, 2) == 30.74


# --- MobileFaceNet -----------------------------------------------------------------------------


def unit_shapes(name: str, channels: tuple[int, int], kernel: int, kind: str) -> dict[str, Tensor]:
    """A published unit: `kind` is "full", "depthwise" or "linear" (no PReLU)."""
    inputs, outputs = channels
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.conv.weight": (outputs, 1 if kind == "depthwise" else inputs, kernel, kernel)
    }
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.bn.{part}"] = (outputs,)
    if kind != "linear":
        shapes[f"{name}.prelu.weight"] = (outputs,)
    generator = torch.Generator().manual_seed(len(name))
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


def bottleneck(name: str, inputs: int, expanded: int, outputs: int) -> dict[str, Tensor]:
    return (
        unit_shapes(f"{name}_conv_sep", (inputs, expanded), 1, "full")
        | unit_shapes(f"{name}_conv_dw", (expanded, expanded), 3, "depthwise")
        | unit_shapes(f"{name}_conv_proj", (expanded, outputs), 1, "linear")
    )


def published_mobilefacenet() -> dict[str, Tensor]:
    """Every tensor of InsightFace's file by name, written down apart from the network's code."""
    state = unit_shapes("conv_1", (3, 64), 3, "full")
    state |= unit_shapes("conv_2_dw", (64, 64), 3, "depthwise")
    state |= bottleneck("dconv_23", 64, 128, 64)
    for index in range(4):
        state |= bottleneck(f"res_3_block{index}", 64, 128, 64)
    state |= bottleneck("dconv_34", 64, 256, 128)
    for index in range(6):
        state |= bottleneck(f"res_4_block{index}", 128, 256, 128)
    state |= bottleneck("dconv_45", 128, 512, 128)
    for index in range(2):
        state |= bottleneck(f"res_5_block{index}", 128, 256, 128)
    return state | unit_shapes("conv_6sep", (128, 512), 1, "full")


def test_mobilefacenet_loads_the_published_keys(tmp_path: Path) -> None:
    state = published_mobilefacenet()
    head = {
        "conv_6dw7_7.conv.weight": torch.zeros(512, 1, 7, 7),
        "pre_fc1_weight": torch.zeros(128, 512),
        "fc1_gamma": torch.zeros(128),
        "reference.input": torch.zeros(1, 3, 112, 112),
    }
    save_file(state | head, tmp_path / "weights.safetensors")
    network = load_mobilefacenet(tmp_path / "weights.safetensors")
    loaded = network.state_dict()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor), name
    counters = {name for name in loaded if name.endswith("num_batches_tracked")}
    assert loaded.keys() - counters == state.keys()


def test_mobilefacenet_normalises_with_the_published_epsilon() -> None:
    norms = [m for m in MobileFaceNet().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert not [m for m in MobileFaceNet().modules() if isinstance(m, nn.Conv2d) and m.bias]


def test_mobilefacenets_stages_are_all_of_it_in_order() -> None:
    network = MobileFaceNet()
    stages = list(network.stages())
    assert [name for name, _ in stages][:3] == ["conv_1", "conv_2_dw", "dconv_23"]
    assert stages[-1][0] == "conv_6sep"
    parts = [p for _, modules in stages for m in modules for p in m.parameters()]
    assert [id(p) for p in parts] == [id(p) for p in network.parameters()]


def without(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conv_1.bn.bias"), r"missing: conv_1\.bn\.bias"),
        (lambda s: s | {"extra.weight": torch.zeros(1)}, r"unknown: extra\.weight"),
        (
            lambda s: s | {"conv_1.bn.bias": torch.zeros(3)},
            r"shape: conv_1\.bn\.bias \(3,\) instead of \(64,\)",
        ),
        (lambda _: {"weight": torch.zeros(1)}, r"missing: .* \.\.\.; unknown: weight"),
    ],
)
def test_mobilefacenet_names_what_does_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(change(published_mobilefacenet()), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_mobilefacenet(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400, "a line, not the whole list"


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x10" + b"\0" * 7 + b"{" * 16])
def test_mobilefacenet_refuses_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: not a safetensors file"):
        load_mobilefacenet(path)


def test_mobilefacenet_reproduces_the_published_feature_map() -> None:
    path = Path(os.environ.get(WEIGHTS_VARIABLE, USUAL_WEIGHTS))
    if not path.is_file():
        pytest.skip(
            f"no MobileFaceNet weights: set {WEIGHTS_VARIABLE} to mobilefacenet_ms1m.safetensors"
        )
    assert reference_error(load_mobilefacenet(path), path) < 1e-4
    assert reference_error(MobileFaceNet(), path) > 1e-2, "random weights are told apart"


# --- ResNet-18 ---------------------------------------------------------------------------------

State = dict[str, Tensor]


def msceleb_state() -> State:
    """torchvision's ResNet-18 as trained on MS-Celeb-1M: a classifier of many more people."""
    network = resnet18(weights=None, num_classes=300)
    state: State = network.state_dict()
    return state


def prefixed(state: State) -> State:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: {"epoch": 9, "arch": "r18", "state_dict": prefixed(s)}, id="public"),
        pytest.param(lambda s: {"state_dict": s}, id="no prefix"),
        pytest.param(prefixed, id="bare, prefix"),
        pytest.param(lambda s: s, id="bare"),
        pytest.param(lambda s: {k: v for k, v in s.items() if k[:3] != "fc."}, id="no classifier"),
        pytest.param(
            lambda s: {k: v for k, v in s.items() if not k.endswith("tracked")}, id="no counters"
        ),
    ],
)
def test_resnet_loads_the_public_layout(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    state = msceleb_state()
    torch.save(wrap(state), tmp_path / "r18.pth")
    assert_holds(load_resnet18(tmp_path / "r18.pth"), state)


def test_resnet_loads_files_of_old_torch(tmp_path: Path) -> None:
    state = msceleb_state()
    content = {"state_dict": prefixed(state)}
    torch.save(content, tmp_path / "r18.pth.tar", _use_new_zipfile_serialization=False)
    assert_holds(load_resnet18(tmp_path / "r18.pth.tar"), state)


def assert_holds(network: ResNet18, state: State) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == {name for name in state if not name.startswith("fc.")}
    for name, tensor in loaded.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name


@torch.no_grad()
def test_resnet_computes_torchvisions_last_feature_map(tmp_path: Path) -> None:
    original = resnet18(weights=None).eval()
    torch.save({"state_dict": prefixed(original.state_dict())}, tmp_path / "r18.pth")
    network = load_resnet18(tmp_path / "r18.pth").eval()
    images = clouds(1, 224)
    pooled = network(images).mean((2, 3))
    torch.testing.assert_close(original.fc(pooled), original(images))


def test_resnet_names_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save({"state_dict": without(msceleb_state(), "layer3.0.conv1.weight")}, path)
    with pytest.raises(CheckpointError, match=r"r18\.pth: .*missing: layer3\.0\.conv1\.weight"):
        load_resnet18(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([1, 2], id="a list"),
        pytest.param({"state_dict": [1, 2]}, id="no dict inside"),
        pytest.param({"state_dict": {}}, id="an empty dict"),
        pytest.param({"epoch": 3, "model": {}}, id="another layout"),
        pytest.param({1: torch.zeros(1)}, id="numbers for names"),
        pytest.param({"state_dict": {"conv1.weight": "text"}}, id="text for tensors"),
        pytest.param(ResNet18, id="a class: code, which is never run"),
    ],
)
def test_resnet_refuses_other_contents(tmp_path: Path, content: object) -> None:
    path = tmp_path / "r18.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"r18\.pth: "):
        load_resnet18(path)


@pytest.mark.parametrize("content", [b"", b"text, no checkpoint", b"PK\x03\x04 half a zip"])
def test_resnet_refuses_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r18.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"r18\.pth: not a torch checkpoint"):
        load_resnet18(path)


def test_resnet_refuses_a_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save({"state_dict": msceleb_state()}, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"r18\.pth: not a torch checkpoint"):
        load_resnet18(path)
