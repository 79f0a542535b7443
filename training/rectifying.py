"""A MobileFaceNet whose PReLUs turn into ReLUs while it is trained.

A ReLU costs nothing at inference: it is part of the convolution before it, in float32 as in 8 bits.
Slopes that are set to zero leave nothing of the network. But most of what a PReLU does, a ReLU of
another threshold, scale and sign does too: towards that one it fades, and at the end the three go
into the normalisation before it and the convolution after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.mobilefacenet import MobileFaceNet

# Values of a channel that its ReLU is fitted to, and thresholds tried, as quantiles of them.
SAMPLES = 4096
QUANTILES = 24


@dataclass(frozen=True, eq=False)
class Hinge:
    """scale * relu(sign * (x - threshold)) for C channels, each [C], and its error."""

    scale: Tensor
    sign: Tensor
    threshold: Tensor
    error: Tensor
    """Variance of what is left, over the variance of what was fitted."""


class FadingPReLU(nn.Module):
    """(1 - faded) * prelu(x) + faded * scale * relu(sign * (x - threshold)) on [N,C,H,W].

    What a hinge lacks of the PReLU's mean is left out: the next BatchNorm takes a constant away.
    """

    sign: Tensor
    threshold: Tensor
    scale: Tensor
    faded: Tensor

    def __init__(self, slope: Tensor, hinge: Hinge) -> None:
        super().__init__()
        self.weight = nn.Parameter(slope.detach().clone())
        for name in ("sign", "threshold", "scale"):
            self.register_buffer(name, getattr(hinge, name).clone())
        self.register_buffer("faded", slope.new_zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        sign, threshold, scale, weight, faded = (
            v.to(x.dtype) for v in (self.sign, self.threshold, self.scale, self.weight, self.faded)
        )
        sign, threshold, scale = (v[:, None, None] for v in (sign, threshold, scale))
        bent = scale * (sign * (x - threshold)).relu()
        return torch.lerp(F.prelu(x, weight), bent, faded)


def inner_prelus(backbone: MobileFaceNet) -> list[nn.PReLU]:
    """Every PReLU but the last one, whose output is F_o itself."""
    return [m for m in backbone.modules() if isinstance(m, nn.PReLU)][:-1]


@torch.no_grad()
def begin_fading(backbone: MobileFaceNet, images: Tensor) -> None:
    """Put a FadingPReLU in place of every inner PReLU, fitted to what it sees on `images`.

    `images` [N,3,S,S], normalised. The network answers as before; `fade` changes that.
    """
    inner = inner_prelus(backbone)
    seen: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].transpose(0, 1).flatten(1)
        order = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))
        seen[module] = values[:, order[:SAMPLES]].T.contiguous()

    handles = [prelu.register_forward_pre_hook(watch) for prelu in inner]
    backbone.eval()(images)
    for handle in handles:
        handle.remove()
    for _, stage in backbone.stages():
        for unit in stage:
            if isinstance(unit.prelu, nn.PReLU) and unit.prelu in seen:
                slope = unit.prelu.weight
                unit.prelu = FadingPReLU(slope, fit_hinge(seen[unit.prelu], slope))


def fading(network: nn.Module) -> Iterator[FadingPReLU]:
    """Those of a network."""
    return (module for module in network.modules() if isinstance(module, FadingPReLU))


@torch.no_grad()
def fade(network: nn.Module, share: float) -> None:
    """Let every FadingPReLU be so much (0..1) of a ReLU."""
    for module in fading(network):
        module.faded.fill_(share)


@torch.no_grad()
def finish_fading(backbone: MobileFaceNet) -> None:
    """PReLUs with slopes of zero in place of FadingPReLUs; answers as if wholly faded."""
    units = [unit for _, stage in backbone.stages() for unit in stage]
    for unit, follower in itertools.pairwise(units):
        hinge = unit.prelu
        if not isinstance(hinge, FadingPReLU):
            continue
        unit.bn.weight.mul_(hinge.sign)
        unit.bn.bias.copy_(hinge.sign * (unit.bn.bias - hinge.threshold))
        scale = hinge.scale[:, None] if follower.conv.groups > 1 else hinge.scale[None]
        follower.conv.weight.mul_(scale[..., None, None])
        prelu = nn.PReLU(len(hinge.weight)).to(hinge.weight.device)
        nn.init.zeros_(prelu.weight)
        unit.prelu = prelu.requires_grad_(hinge.weight.requires_grad)


def fit_hinge(x: Tensor, slope: Tensor) -> Hinge:
    """The hinges nearest to a PReLU of slopes [C] on the values x [M,C], but for a constant.

    By least squares.
    """
    wanted = torch.where(x > 0, x, slope * x)
    aim, spread = wanted.mean(0), wanted.var(0, unbiased=False).clamp(min=1e-12)
    levels = torch.quantile(x, torch.linspace(0, 1, QUANTILES), dim=0)
    best: Hinge | None = None
    for sign, threshold in itertools.product((1.0, -1.0), (*levels, torch.zeros_like(slope))):
        bent = (sign * (x - threshold)).relu()
        mean, power = bent.mean(0), bent.var(0, unbiased=False).clamp(min=1e-12)
        scale = ((bent - mean) * (wanted - aim)).mean(0) / power
        error = (scale * (bent - mean) - (wanted - aim)).square().mean(0) / spread
        hinge = Hinge(scale, torch.full_like(slope, sign), threshold, error)
        best = hinge if best is None else _better(best, hinge)
    assert best is not None, "thresholds are never empty"
    return best


def _better(one: Hinge, other: Hinge) -> Hinge:
    """Channel by channel the one with the smaller error."""
    nearer = other.error < one.error
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return Hinge(*(torch.where(nearer, b, a) for a, b in pairs))
