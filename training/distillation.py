"""Learning from another network's answers beside the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.lan import LanOutput

# Keeps a teacher whose features are all zero from dividing by it.
LEAST_POWER = 1e-6


def distillation_loss(output: LanOutput, told: LanOutput) -> Tensor:
    """How far `output` is from what the teacher `told` of the same N images; 0 where it agrees.

    The divergence (Kullback-Leibler) of the class distributions (Hinton et al., 2015, at
    temperature 1), plus the squared error of F_o over its mean square, so that the scale of the
    features does not matter (Romero et al., 2015).
    """
    classes = F.kl_div(
        output.logits.log_softmax(1),
        told.logits.log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    power = told.feature_map.square().mean().clamp(min=LEAST_POWER)
    return classes + F.mse_loss(output.feature_map, told.feature_map) / power
