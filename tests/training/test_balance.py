from __future__ import annotations

import numpy as np
import pytest
import torch

from training.backbones import load_backbone
from training.balance import balanced
from training.lan import Lan


@pytest.fixture(scope="module")
def network() -> Lan:
    torch.manual_seed(0)
    return Lan(load_backbone("mobilefacenet", None), 3).eval()


def answers(network: Lan) -> torch.Tensor:
    crops = torch.randn(4, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.as_tensor(network(crops).logits)


def test_probabilities_are_divided_by_the_power_of_each_share(network: Lan) -> None:
    shares = np.array([0.7, 0.2, 0.1], np.float32)
    changed = answers(balanced(network, np.tile(shares, (10, 1)), 0.5)).softmax(1)
    expected = answers(network).softmax(1) / torch.from_numpy(shares) ** 0.5
    torch.testing.assert_close(changed, expected / expected.sum(1, keepdim=True))


def test_classes_alike_in_number_leave_the_answers_and_the_network_as_they_were(
    network: Lan,
) -> None:
    before = answers(network)
    changed = answers(balanced(network, np.full((9, 3), 1 / 3, np.float32), 1.0))
    torch.testing.assert_close(changed.softmax(1), before.softmax(1))
    assert torch.equal(answers(network), before)


def test_a_class_that_nobody_shows_counts_as_one_image(network: Lan) -> None:
    targets = np.eye(3, dtype=np.float32)[[0] * 5 + [1] * 3]
    changed = balanced(network, targets, 1.0).classifier.bias - network.classifier.bias
    torch.testing.assert_close(changed.detach().exp(), torch.tensor([8 / 5, 8 / 3, 8.0]))
