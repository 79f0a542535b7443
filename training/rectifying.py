"""A MobileFaceNet with PReLUs -> the nearest one with ReLUs, to be trained further.

A ReLU costs nothing at inference: it is part of the convolution before it, in float32 as in 8 bits.
Slopes that are set to zero leave nothing of the network; but most of what a PReLU does, a ReLU of
another threshold, scale and sign does too, and those go into the convolutions around it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.backbones.mobilefacenet import ConvUnit, MobileFaceNet

# Values of a channel that its ReLU is fitted to, and thresholds tried, as quantiles of them.
SAMPLES = 4096
QUANTILES = 24


@dataclass(frozen=True, eq=False)
class Hinge:
    """scale * relu(sign * (x - threshold)) + offset for C channels, each [C], and its error."""

    scale: Tensor
    sign: Tensor
    threshold: Tensor
    offset: Tensor
    error: Tensor
    """Mean square of what is left, over the variance of what was fitted."""


def inner_prelus(backbone: MobileFaceNet) -> list[nn.PReLU]:
    """Every PReLU but the last one, whose output is F_o itself."""
    return [m for m in backbone.modules() if isinstance(m, nn.PReLU)][:-1]


@torch.no_grad()
def rectify(backbone: MobileFaceNet, images: Tensor) -> None:
    """Give every inner PReLU slopes of zero and fit what is around it to `images` [N,3,S,S].

    Zeros that a depthwise convolution sees around its map no longer mean zero then, and a PReLU
    that rises on both sides keeps one of them: the network needs to be trained. Each BatchNorm is
    to add the bias alone, as `fold` leaves it; `settle` it afterwards.
    """
    units = [unit for _, stage in backbone.stages() for unit in stage]
    inner = inner_prelus(backbone)
    for unit, follower in itertools.pairwise(units):
        if unit.prelu not in inner:
            continue
        hinge = fit_hinge(_inputs(unit, backbone, images), unit.prelu.weight)
        unit.conv.weight.mul_(hinge.sign[:, None, None, None])
        unit.bn.bias.copy_(hinge.sign * (unit.bn.bias - hinge.threshold))
        nn.init.zeros_(unit.prelu.weight)
        _absorb(follower, hinge)


def _inputs(unit: ConvUnit, backbone: MobileFaceNet, images: Tensor) -> Tensor:
    """[M,C] of what the unit's PReLU sees on `images`."""
    seen: list[Tensor] = []
    hook = unit.prelu.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    backbone(images)
    hook.remove()
    values = seen[0].transpose(0, 1).flatten(1)
    order = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))
    return values[:, order[:SAMPLES]].T.contiguous()


def _absorb(follower: ConvUnit, hinge: Hinge) -> None:
    """Put a hinge's scale and offset into the convolution that reads it."""
    weight = follower.conv.weight
    taps = weight.sum((2, 3))  # [outputs, inputs], or [channels, 1]
    depthwise = follower.conv.groups > 1
    follower.bn.bias.add_(taps[:, 0] * hinge.offset if depthwise else taps @ hinge.offset)
    weight.mul_((hinge.scale[:, None] if depthwise else hinge.scale[None])[..., None, None])


def fit_hinge(x: Tensor, slope: Tensor) -> Hinge:
    """The hinges nearest to a PReLU of slopes [C] on the values x [M,C], by least squares."""
    wanted = torch.where(x > 0, x, slope * x)
    aim, spread = wanted.mean(0), wanted.var(0, unbiased=False).clamp(min=1e-12)
    levels = torch.quantile(x, torch.linspace(0, 1, QUANTILES), dim=0)
    best: Hinge | None = None
    for sign, threshold in itertools.product((1.0, -1.0), (*levels, torch.zeros_like(slope))):
        bent = (sign * (x - threshold)).relu()
        mean, power = bent.mean(0), bent.var(0, unbiased=False).clamp(min=1e-12)
        scale = ((bent - mean) * (wanted - aim)).mean(0) / power
        offset = aim - scale * mean
        error = (scale * bent + offset - wanted).square().mean(0) / spread
        hinge = Hinge(scale, torch.full_like(slope, sign), threshold, offset, error)
        best = hinge if best is None else _better(best, hinge)
    assert best is not None, "thresholds are never empty"
    return best


def _better(one: Hinge, other: Hinge) -> Hinge:
    """Channel by channel the one with the smaller error."""
    nearer = other.error < one.error
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return Hinge(*(torch.where(nearer, b, a) for a, b in pairs))
