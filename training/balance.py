"""A network that answers rare classes more often, common ones less, without training again."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from training.lan import Lan


def balanced(network: Lan, targets: NDArray[np.float32], strength: float) -> Lan:
    """A copy of `network` whose logits are lowered by `strength` times the log of a class's share.

    `targets` [N,K] are the distributions that it was trained on. 0 changes nothing; at 1 the answer
    is the one that would be most probable if all classes were equally frequent. Post-hoc logit
    adjustment: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """
    # A class that is nowhere counts as if one image showed it.
    shares = targets.mean(axis=0, dtype=np.float64).clip(min=1 / len(targets))
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.classifier.bias.sub_(strength * torch.from_numpy(np.log(shares)).float())
    return changed
