"""Learning from other networks' answers beside the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ensemble_answer(logits: Sequence[Tensor]) -> Tensor:
    """[N,K] log probabilities: the mean of the probabilities that logits [N,K] stand for."""
    told = torch.stack([one.float().log_softmax(1) for one in logits])
    return told.logsumexp(0) - torch.log(told.new_tensor(len(logits)))


def distillation_loss(logits: Tensor, told: Tensor) -> Tensor:
    """Divergence (Kullback-Leibler) of the classes of `logits` from `told`; 0 where they agree.

    `logits` and the log probabilities `told` are [N,K] (Hinton et al., 2015, at temperature 1).
    """
    own = logits.float().log_softmax(1)
    return F.kl_div(own, told, reduction="batchmean", log_target=True)
