"""Data set -> prepared faces -> guidance maps -> trained LAN: the stages joined, each cached."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.faces.detector import FaceDetector
from service.printable import printable
from service.runtime import SessionSettings
from training.backbones import MobileFaceNet, load_backbone
from training.config import TrainingConfig
from training.crops import GRID, CropDataset, batches, normalise
from training.datasets.records import DatasetError, Split, evenly_spread, file_digests
from training.datasets.registry import Choice, find_dataset
from training.distributed import joined_world
from training.guidance import (
    IN_MEMORY_BYTES,
    GuidanceMaps,
    cache_key,
    compute_guidance,
    compute_guidance_streamed,
    extract_features,
    load_guidance,
    save_guidance,
    store_features,
    weights_digest,
)
from training.lan import Lan
from training.origins import teacher, weights_of_start
from training.preparation import NO_FACE, PIPELINE_VERSION, Prepared, prepare
from training.recovery import settle
from training.rectifying import begin_fading, inner_prelus
from training.tracking import write_run_file
from training.trainer import CHECKPOINT, Trainer, TrainingError, fading_epochs, frozen_stages
from training.turning import MAX_TURN_DEGREES

# Images a step where nothing is learned.
BATCH = 64
# Crops that a network taken back from its file is settled on.
SETTLING_IMAGES = 2048
# And those that ReLUs are fitted to.
RECTIFYING_IMAGES = 256


@dataclass(frozen=True)
class RunPaths:
    """Where a run reads and writes."""

    data: Path
    """Root of the data set in its official layout, or a table of one's own images."""
    weights: Path | None
    """Pretrained backbone; None: random weights, or those of `start`."""
    detector: Path
    """RetinaFace ONNX file."""
    cache: Path
    """Folder of prepared landmarks and guidance maps, shared by runs."""
    run: Path
    """Folder of this run's checkpoints, metrics and log."""
    dataset: str = "ferplus"
    """Name of the data set in the registry."""
    start: Path | None = None
    """Run whose best network is the one to start from, as a folder or as the ONNX file exported
    from it; None: the backbone's weights, and a new head."""
    teachers: tuple[Path, ...] = ()
    """Runs whose best networks' mean answer is learnt from beside the labels, likewise."""
    fold: int = 0
    """The fold that is the test, where the data set comes in folds."""


@dataclass(frozen=True, eq=False)
class PreparedSplit:
    """A split with the geometry of its faces; unreadable images are gone."""

    split: Split
    faces: Prepared


def prepare_split(split: Split, paths: RunPaths) -> PreparedSplit:
    """Find the faces of `split`; report how many were found and what cannot be read.

    Landmarks and boxes that come with the data go before the detector's own choice.
    Raises DatasetError where no image can be read.
    """
    detector = FaceDetector.load(paths.detector, SessionSettings("cpu"))
    faces = prepare(split.paths, paths.cache / "landmarks.jsonl", detector, boxes=split.boxes)
    if split.landmarks is not None:
        faces = faces.with_landmarks(split.landmarks)
    print(f"{len(split)} images: {dict(faces.counts)}", flush=True)
    if faceless := faces.counts[NO_FACE]:
        print(f"{faceless} without a face are kept, cut by the others' mean transform", flush=True)
    unreadable = [
        p for p, readable in zip(split.paths, faces.readable, strict=True) if not readable
    ]
    for path in unreadable:
        print(f"unreadable, left out: {printable(str(path))}", flush=True)
    if len(unreadable) == len(split):
        raise DatasetError(f"{paths.data}: none of {len(split)} images can be read")
    return PreparedSplit(split.subset(faces.readable), faces.subset(faces.readable))


def guidance_for(
    prepared: PreparedSplit, network: Lan, config: TrainingConfig, paths: RunPaths
) -> GuidanceMaps:
    """Guidance maps of a training split, from the cache where nothing they depend on changed."""
    inputs: dict[str, object] = {
        "images": file_digests(prepared.split.paths),
        "matrices": prepared.faces.matrices.round(6).tolist(),
        "weights": weights_digest(network.backbone),
        "size": network.backbone.input_size,
        "clusters": config.clusters,
        "pipeline": PIPELINE_VERSION,
    }
    if config.attentive != "smallest":
        inputs["attentive"] = config.attentive
    key = cache_key(inputs)
    guidance = load_guidance(paths.cache, key)
    if guidance is None:
        guidance = _compute(prepared, network, config, paths.cache / f"features-{key}.npy")
        save_guidance(paths.cache, key, guidance)
    return guidance


def _compute(
    prepared: PreparedSplit, network: Lan, config: TrainingConfig, store: Path
) -> GuidanceMaps:
    network.eval().to(memory_format=torch.channels_last)
    dataset = CropDataset(prepared.split, prepared.faces, network.backbone.input_size)
    backbone = torch.compile(network.backbone) if config.compile else network.backbone
    channels = network.backbone.feature_channels
    if len(dataset) * GRID * GRID * channels * 2 <= IN_MEMORY_BYTES:
        features = extract_features(backbone, _images(dataset), -(-len(dataset) // BATCH))
        return compute_guidance(features, clusters=config.clusters, attentive=config.attentive)
    stored = store_features(backbone, dataset, store, channels)
    guidance = compute_guidance_streamed(
        stored, clusters=config.clusters, attentive=config.attentive
    )
    store.unlink()
    return guidance


def _images(dataset: CropDataset) -> Iterator[Tensor]:
    return (normalise(batch.images) for batch in batches(dataset, BATCH, shuffle=False))


def load_splits(config: TrainingConfig, paths: RunPaths, *, final: bool) -> tuple[Split, Split]:
    """Training and validation splits of the data set; `final` trains on both together."""
    dataset = find_dataset(paths.dataset)
    choice = Choice(majority_only=config.majority_only, fold=paths.fold)
    train = dataset.load(paths.data, "final" if final else "train", choice)
    # Measured images have a hard label, whatever is learnt from.
    validation = dataset.load(paths.data, "validation", Choice(fold=paths.fold))
    return (train if config.soft_labels else train.hardened()), validation


def require_sound(config: TrainingConfig) -> None:
    """Raise TrainingError for choices that contradict each other."""
    if not 0 <= config.alpha <= 1:
        raise TrainingError(f"alpha is {config.alpha:g}; expected 0 (no guidance) to 1")
    if config.fusion == "none" and config.alpha:
        raise TrainingError("fusion none has no attention that could be guided; set alpha to 0")
    if not 0 <= config.augmentation.turn_degrees <= MAX_TURN_DEGREES:
        raise TrainingError(
            f"turn_degrees is {config.augmentation.turn_degrees:g}; "
            f"expected 0 to {MAX_TURN_DEGREES:g}"
        )
    if not 0 <= config.mixup <= 1:
        raise TrainingError(f"mixup is {config.mixup:g}; expected a probability, 0 to 1")
    if config.teacher_weight < 0:
        raise TrainingError(f"teacher_weight is {config.teacher_weight:g}; expected 0 or more")
    if config.relu and config.backbone != "mobilefacenet":
        raise TrainingError("relu works with the mobilefacenet backbone only")
    if config.relu and config.freeze_before:
        early = 0 < config.freeze_from < fading_epochs(config)
        if config.freeze_epochs or early:
            raise TrainingError("relu turns PReLUs into ReLUs first: freeze layers after that")
    if bool(config.freeze_before) != bool(config.freeze_epochs or config.freeze_from):
        raise TrainingError(
            "freeze_before names the layers, freeze_epochs or freeze_from the time: one without "
            "the other freezes nothing"
        )
    if config.clusters < 2:
        raise TrainingError(f"clusters is {config.clusters}; two or more are needed")


def train_lan(
    config: TrainingConfig, paths: RunPaths, *, resume: bool, final: bool = False
) -> Trainer:
    """The whole run. With `resume`, an interrupted run in the folder goes on.

    `final` trains on training + validation images; the accuracy printed each epoch is then no
    measure of anything, and is left out.
    """
    require_sound(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if not resume and (paths.run / CHECKPOINT).exists():
        raise TrainingError(f"{paths.run} holds a run; go on with --resume, or name another --run")
    with joined_world() as world:
        if world.first and not (paths.start or paths.weights):
            print(
                "warning: no --start and no --weights: the network begins with random weights, "
                "and needs very many photos to learn from",
                flush=True,
            )
        with world.first_alone():
            train, validation, network, teachers, maps = _material(config, paths, final=final)
        provenance = provenance_of(train.split, paths, final=final)
        trainer = Trainer(network, config, paths.run, provenance, world=world, teachers=teachers)
        if resume and trainer.resume():
            print(f"{paths.run}: going on after epoch {trainer.epoch}", flush=True)
        elif world.first:
            write_run_file(paths.run, config, provenance, train.split)
        size = network.backbone.input_size
        crops = CropDataset(
            train.split,
            train.faces,
            size,
            guidance=maps,
            augmentation=config.augmentation,
            seed=config.seed,
        )
        held_out = None if final else CropDataset(validation.split, validation.faces, size)
        trainer.fit(crops, held_out)
    return trainer


def _material(
    config: TrainingConfig, paths: RunPaths, *, final: bool
) -> tuple[PreparedSplit, PreparedSplit, Lan, list[Lan], NDArray[np.uint8] | None]:
    """Training and validation images, the network to start from, teachers, and guidance maps."""
    splits = load_splits(config, paths, final=final)
    labels = splits[0].labels
    # Whatever may be refused comes before the search for faces, which may take hours.
    network = Lan(
        load_backbone(config.backbone, paths.weights),
        len(labels),
        fusion=config.fusion,
        dropout=config.dropout,
    )
    frozen_stages(network, config.freeze_before)
    start = weights_of_start(paths.start, labels, config) if paths.start else {}
    teachers = [teacher(path, labels, network.backbone.input_size) for path in paths.teachers]
    train, validation = (prepare_split(split, paths) for split in splits)
    # Guidance comes from the face-recognition weights in every run that has them, else from the
    # network that it starts from.
    if paths.start and paths.weights is None:
        _begin_with(start, paths.start, network, train)
    maps = guidance_for(train, network, config, paths).maps if config.alpha else None
    if paths.start and paths.weights is not None:
        _begin_with(start, paths.start, network, train)
    if config.relu:
        _rectify(network, train)
    return train, validation, network, teachers, maps


def _begin_with(start: dict[str, Tensor], path: Path, network: Lan, train: PreparedSplit) -> None:
    """Give `network` the weights `start`, which came from `path`."""
    network.load_state_dict(start, strict=False)
    if path.is_file():
        settle(network, _some_images(network, train, SETTLING_IMAGES))


def _rectify(network: Lan, train: PreparedSplit) -> None:
    """Make ready to lose its slopes, if it has any."""
    assert isinstance(network.backbone, MobileFaceNet), "as require_sound saw to"
    if any(bool(prelu.weight.any()) for prelu in inner_prelus(network.backbone)):
        images = torch.cat(list(_some_images(network, train, RECTIFYING_IMAGES)))
        begin_fading(network.backbone, images)


def _some_images(network: Lan, train: PreparedSplit, count: int) -> Iterator[Tensor]:
    """Batches of so many images of the split, evenly spread, as the network wants them."""
    chosen = evenly_spread(len(train.split), count)
    split, faces = train.split.subset(chosen), train.faces.subset(chosen)
    return _images(CropDataset(split, faces, network.backbone.input_size))


def provenance_of(train: Split, paths: RunPaths, *, final: bool) -> dict[str, Any]:
    """Where a run's network comes from, as its checkpoints tell it."""
    dataset = find_dataset(paths.dataset)
    return {
        "labels": list(train.labels),
        "dataset": dataset.title,
        "protocol": dataset.protocol_of(Choice(fold=paths.fold), final=final),
        "final": final,
        "training_images": len(train),
        "weights": _weights_name(paths),
        "start": paths.start.name if paths.start else "",
        "teachers": [path.name for path in paths.teachers],
        "commit": _commit(),
        # A plain str: checkpoints are read back as plain values alone (weights_only).
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _weights_name(paths: RunPaths) -> str:
    """What the backbone was before the run; "" where it came with the network started from."""
    if paths.weights:
        return paths.weights.name
    return "" if paths.start else "random"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    answer = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
