"""Other networks that a run begins with or learns from: another run's best, or an exported file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from training.config import TrainingConfig
from training.lan import Lan
from training.recovery import recover
from training.runs import load_run
from training.trainer import TrainingError


def weights_of_start(
    path: Path, labels: tuple[str, ...], config: TrainingConfig
) -> dict[str, Tensor]:
    """What a run begins with; the classifier too, where the classes are the same in any order.

    Raises CheckpointError where there is no network, TrainingError where it is of another kind.
    """
    network, known, kind = _network_of(path)
    own = f"{config.backbone}, fusion {config.fusion}"
    if kind != own:
        raise TrainingError(f"{path} holds another network ({kind}); this run has {own}")
    if set(known) == set(labels):
        network.reorder(known, labels)
        return network.state_dict()
    print(f"{path} knows {', '.join(known)}; the classifier begins anew", flush=True)
    return {k: v for k, v in network.state_dict().items() if not k.startswith("classifier.")}


def teacher(path: Path, labels: tuple[str, ...], size: int) -> Lan:
    """A network learnt from, its classes in the order of `labels`.

    Raises CheckpointError where there is none, TrainingError where it knows other classes or takes
    crops of another `size`.
    """
    network, known, _ = _network_of(path)
    if set(known) != set(labels):
        raise TrainingError(f"{path} knows other classes: {', '.join(known)}")
    if (theirs := network.backbone.input_size) != size:
        raise TrainingError(f"{path} takes crops of {theirs} pixels; this run has {size}")
    network.reorder(known, labels)
    return network


def _network_of(path: Path) -> tuple[Lan, tuple[str, ...], str]:
    """The network in a run's folder or an exported file, its classes and its kind."""
    if path.is_dir():
        run = load_run(path)
        network, labels = run.network, tuple(run.provenance["labels"])
        kind = f"{run.config.backbone}, fusion {run.config.fusion}"
    else:
        model = recover(path)
        network, labels = model.network, model.labels
        kind = f"{model.backbone}, fusion {model.fusion}"
    return network, labels, kind
