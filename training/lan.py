"""The Local Attention Network (paper, section III)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.backbones import Backbone

# "none" is the backbone alone, the paper's baseline: no attention, f_o itself is classified.
FUSIONS = ("add", "concat", "mean", "none")
GRID = 7


class LanOutput(NamedTuple):
    """What the network gives for N faces and K classes."""

    logits: Tensor  # [N,K] float32
    attention_logits: Tensor | None  # [N,7,7] float32, F_m before its sigmoid; None: no attention
    feature_map: Tensor  # [N,C,7,7] float32, F_o

    @property
    def attention(self) -> Tensor:
        """The attention map F_m [N,7,7], 0..1; zero everywhere for the backbone alone."""
        if self.attention_logits is None:
            return torch.zeros_like(self.feature_map[:, 0])
        return self.attention_logits.sigmoid()


class LocalAttention(nn.Module):
    """Four 3x3 convolutions: F_o [N,C,7,7] -> attention logits [N,7,7] (sigmoid gives F_m)."""

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__()
        widths = (channels, hidden, hidden, hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, 1, 3, padding=1))

    def forward(self, feature_map: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.layers(feature_map)
        return logits.squeeze(1)


class Lan(nn.Module):
    """Backbone, local attention, fusion and one linear classifier.

    F_a = F_o * F_m; both are globally average pooled to f_o and f_a; the classifier sees
    f_o + f_a ("add", the paper's choice), their concatenation or their mean. With fusion "none" it
    sees f_o alone: that is f_o + f_a with an attention of zero.
    """

    def __init__(
        self, backbone: Backbone, classes: int, *, fusion: str = "add", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion {fusion!r} is unknown; one of {', '.join(FUSIONS)}")
        self.backbone = backbone
        self.fusion = fusion
        attended = fusion != "none"
        self.attention = LocalAttention(backbone.feature_channels) if attended else None
        self.dropout = nn.Dropout(dropout)
        width = backbone.feature_channels * (2 if fusion == "concat" else 1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> LanOutput:
        """`image` [N,3,S,S] float32, normalised as the backbone wants it."""
        return self.head(self.backbone(image))

    def head(self, feature_map: Tensor) -> LanOutput:
        """What follows the backbone, from its F_o [N,C,7,7]."""
        f_o, attention_logits = feature_map.mean((2, 3)), None
        fused = f_o
        if self.attention is not None:
            attention_logits = self.attention(feature_map)
            weighted = feature_map * attention_logits.sigmoid().unsqueeze(1)
            fused = self.fuse(f_o, weighted.mean((2, 3)))
        return LanOutput(self.classifier(self.dropout(fused)), attention_logits, feature_map)

    @torch.no_grad()
    def reorder(self, known: Sequence[str], wanted: Sequence[str]) -> None:
        """Have the logits of the classes `known` come in the order `wanted`, of the same names."""
        rows = [known.index(name) for name in wanted]
        for parameter in (self.classifier.weight, self.classifier.bias):
            parameter.copy_(parameter[rows])

    def fuse(self, f_o: Tensor, f_a: Tensor) -> Tensor:
        """[N,C], [N,C] -> [N,C] or, concatenated, [N,2C]."""
        if self.fusion == "concat":
            return torch.cat((f_o, f_a), 1)
        return (f_o + f_a) / 2 if self.fusion == "mean" else f_o + f_a

    def evidence(self, feature_map: Tensor, attention: Tensor) -> Tensor:
        """Class evidence [N,K,7,7]: its mean over positions plus the bias IS the logit.

        The classifier is linear on a mean over positions, so (add) evidence_k(p) =
        w_k . F_o(p) (1 + F_m(p)): the paper's class activation map of f (Figures 3 and 4).
        """
        score_o, score_a = self.evidence_parts(feature_map, attention)
        return score_o + score_a

    def evidence_parts(self, feature_map: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Class evidence of F_o and of F_a, each [N,K,7,7]; their sum is `evidence`."""
        weight_o, weight_a = self.classifier.weight, self.classifier.weight
        if self.fusion == "concat":
            weight_o, weight_a = self.classifier.weight.chunk(2, dim=1)
        elif self.fusion == "mean":
            weight_o = weight_a = self.classifier.weight / 2
        score_o, score_a = (
            functional.conv2d(feature_map, weight[:, :, None, None])
            for weight in (weight_o, weight_a)
        )
        return score_o, score_a * attention.unsqueeze(1)
