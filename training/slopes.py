"""PReLU slopes that grow together, so that the exported network has fused LeakyReLUs.

Swapping the activations at once costs accuracy that takes epochs to come back; in small steps the
other weights follow.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def slopes(network: nn.Module) -> Iterator[Tensor]:
    """The slopes [C] of every PReLU."""
    return (m.weight for m in network.modules() if isinstance(m, nn.PReLU))


@torch.no_grad()
def share_slopes(network: nn.Module, before: float, after: float) -> None:
    """Take every slope from share `before` of the way to its layer's mean to share `after`.

    At 1 and beyond they are exactly equal. Nothing needs to be remembered between the calls: the
    mean does not move, and the distance to it shrinks by (1 - after) / (1 - before).
    """
    if before >= 1:
        return
    step = min(1.0, (after - before) / (1 - before))
    for slope in slopes(network):
        mean = slope.mean()
        slope.copy_(mean.expand_as(slope) if step == 1 else slope.lerp(mean, step))
