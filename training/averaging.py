"""The mean of two networks' weights: a model soup (Wortsman et al., ICML 2022)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from training.backbones import CheckpointError
from training.datasets.records import file_digests
from training.lan import Lan
from training.recovery import fold, recover
from training.runs import TrainedRun


def averaged(run: TrainedRun, path: Path) -> TrainedRun:
    """`run` with the mean of its weights and those of the exported file at `path`.

    Good for a run that went on from that file: on the way between both, networks answer as well as
    either, and often better. Each BatchNorm is folded into its convolution first, as it is in the
    file. Raises CheckpointError where the file is none of this package, or of another kind.
    """
    other = recover(path)
    config, labels = run.config, tuple(run.provenance["labels"])
    own = (config.backbone, config.fusion, set(labels))
    if own != (other.backbone, other.fusion, set(other.labels)):
        raise CheckpointError(
            f"{path}: cannot be averaged with the run, which has another backbone, fusion or labels"
        )
    other.network.reorder(other.labels, labels)
    network = fold(run.network)
    network.load_state_dict(_mean(network, other.network))
    origin = f"{path.name} (SHA-256 {file_digests([path])[0]})"
    return replace(run, network=network, provenance=run.provenance | {"averaged_with": origin})


def _mean(one: Lan, other: Lan) -> dict[str, torch.Tensor]:
    theirs = other.state_dict()
    return {
        name: (own + theirs[name]) / 2 if own.is_floating_point() else own
        for name, own in one.state_dict().items()
    }
