"""The Local Attention Network: shapes, fusions, exact evidence, gradients and its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.made_up import clouds, enliven, tiny_lan
from training.backbones import load_backbone
from training.lan import FUSIONS, Lan, LanOutput
from training.trainer import lan_loss

fusions = pytest.mark.parametrize("fusion", FUSIONS)


def test_the_three_fusions_of_the_paper_and_its_baseline() -> None:
    assert FUSIONS == ("add", "concat", "mean", "none")
    with pytest.raises(ValueError, match="'sum' is unknown; one of add, concat, mean, none"):
        tiny_lan(fusion="sum")


@fusions
def test_output_shapes(fusion: str) -> None:
    output = enliven(tiny_lan(5, fusion=fusion))(clouds(3, 28))
    assert output.logits.shape == (3, 5)
    assert output.attention.shape == (3, 7, 7)
    assert output.feature_map.shape == (3, 8, 7, 7)
    tensors = (output.logits, output.attention, output.feature_map)
    assert all(tensor.dtype == torch.float32 for tensor in tensors)


def test_the_baseline_is_the_backbone_alone() -> None:
    network = enliven(tiny_lan(5, fusion="none"))
    assert not [name for name in network.state_dict() if name.startswith("attention")]
    output = network(clouds(3, 28))
    assert output.attention_logits is None
    assert not output.attention.any()
    f_o = output.feature_map.mean((2, 3))
    torch.testing.assert_close(output.logits, network.classifier(f_o))
    loss = lan_loss(output, torch.eye(5)[:3], torch.ones(3, 7, 7), 0.5)
    assert loss.total == loss.classification


def test_attention_is_between_0_and_1_and_differs_between_places() -> None:
    attention = enliven(tiny_lan())(clouds(4, 28)).attention
    assert attention.shape == (4, 7, 7)
    assert attention.min() >= 0
    assert attention.max() <= 1
    assert attention.std() > 0.01


def test_fusion_is_what_the_paper_says() -> None:
    f_o, f_a = torch.randn(3, 8), torch.randn(3, 8)
    added, joined, averaged = (tiny_lan(fusion=fusion).fuse(f_o, f_a) for fusion in FUSIONS[:3])
    torch.testing.assert_close(added, f_o + f_a)
    torch.testing.assert_close(joined, torch.cat((f_o, f_a), 1))
    torch.testing.assert_close(averaged, (f_o + f_a) / 2)


@fusions
def test_logits_are_the_papers_equations(fusion: str) -> None:
    network = enliven(tiny_lan(5, fusion=fusion))
    output = network(clouds(3, 28))
    attended = output.feature_map * output.attention[:, None]
    f_o, f_a = output.feature_map.mean((2, 3)), attended.mean((2, 3))
    torch.testing.assert_close(output.logits, network.classifier(network.fuse(f_o, f_a)))


@fusions
@torch.no_grad()
def test_evidence_adds_up_to_the_logit(fusion: str) -> None:
    network = enliven(tiny_lan(5, fusion=fusion, dropout=0.5))
    output = network(clouds(4, 28))
    evidence = network.evidence(output.feature_map, output.attention)
    assert evidence.shape == (4, 5, 7, 7)
    assert evidence.std((2, 3)).min() > 0.001, "evidence differs between places"
    sums = evidence.mean((2, 3)) + network.classifier.bias
    torch.testing.assert_close(sums, output.logits, atol=1e-5, rtol=1e-5)


@fusions
def test_every_trained_parameter_gets_a_gradient(fusion: str) -> None:
    assert_all_get_gradients(tiny_lan(fusion=fusion).train(), 6)


@pytest.mark.parametrize("backbone", ["mobilefacenet", "resnet18", "iresnet18"])
def test_every_parameter_of_the_real_backbones_gets_a_gradient(backbone: str) -> None:
    assert_all_get_gradients(Lan(load_backbone(backbone, None), 3).train(), 2)


def assert_all_get_gradients(network: Lan, count: int) -> None:
    images = clouds(count, network.backbone.input_size)
    guidance = torch.randint(0, 2, (count, 7, 7)).float()
    targets = torch.eye(3)[torch.arange(count) % 3]
    lan_loss(network(images), targets, guidance, 0.5).total.backward()  # type: ignore[no-untyped-call]
    idle = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert idle == []


def some_output(logits: Tensor, attention_logits: Tensor) -> LanOutput:
    return LanOutput(logits, attention_logits, torch.zeros(len(logits), 8, 7, 7))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_loss_is_cross_entropy_plus_alpha_times_binary_cross_entropy(alpha: float) -> None:
    rng = np.random.default_rng(0)
    logits, attention = rng.normal(0, 2, (4, 5)), rng.normal(0, 2, (4, 7, 7))
    targets = rng.dirichlet(np.ones(5), 4)
    guidance = rng.uniform(size=(4, 7, 7))
    loss = lan_loss(
        some_output(torch.from_numpy(logits), torch.from_numpy(attention)),
        torch.from_numpy(targets),
        torch.from_numpy(guidance),
        alpha,
    )
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    cross_entropy = -(targets * log_probabilities).sum(1).mean()
    attention_map = 1 / (1 + np.exp(-attention))
    binary = guidance * np.log(attention_map) + (1 - guidance) * np.log(1 - attention_map)
    assert loss.classification.item() == pytest.approx(cross_entropy)
    assert loss.guidance.item() == pytest.approx(-binary.mean())
    assert loss.total.item() == pytest.approx(cross_entropy - alpha * binary.mean())


def test_loss_stays_finite_where_attention_is_certain() -> None:
    certain = some_output(torch.zeros(1, 3), torch.full((1, 7, 7), 200.0))
    loss = lan_loss(certain, torch.eye(3)[:1], torch.zeros(1, 7, 7), 0.5)
    assert torch.isfinite(loss.total)


def test_dropout_works_in_training_alone() -> None:
    network = enliven(tiny_lan(dropout=0.5))
    images = clouds(2, 28)
    assert torch.equal(network(images).logits, network(images).logits)
    network.train()
    assert not torch.equal(network(images).logits, network(images).logits)
