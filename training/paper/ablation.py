"""The paper's ablation within minutes: LAN heads on the cached features of a frozen backbone.

F_o of every image is computed once; what is trained is the attention and the classifier. That
leaves out what guidance does to the backbone, so differences are those of the head alone. Whole
networks are compared with `python -m training train` and `python -m training compare`.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.assessment import POSE_DEGREES, head_angles
from training.augmentation import NO_AUGMENTATION
from training.backbones import Backbone, load_backbone
from training.config import TrainingConfig
from training.crops import CropDataset
from training.datasets.records import file_digests
from training.evaluation import Evaluation
from training.guidance import (
    Features,
    cache_key,
    compute_guidance,
    store_features,
    weights_digest,
)
from training.lan import Lan
from training.pipeline import PreparedSplit, RunPaths, load_splits, prepare_split, provenance_of
from training.trainer import BEST, lan_loss, learning_rate, make_optimizer, update_average

RESULTS = "results.jsonl"
EVALUATION_BATCH = 256
EMA_DECAY = 0.99


@dataclass(frozen=True)
class Variant:
    """One row of the ablation."""

    name: str
    fusion: Literal["add", "concat", "mean", "none"] = "add"
    alpha: float = 0.5
    clusters: int = 2
    attentive: Literal["smallest", "largest"] = "smallest"


VARIANTS = (
    Variant("baseline", fusion="none", alpha=0.0),
    *(Variant(f"alpha-{a:g}", alpha=a) for a in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)),
    Variant("concat", fusion="concat"),
    Variant("mean", fusion="mean"),
    Variant("clusters-3", clusters=3),
    Variant("largest", attentive="largest"),
)


@dataclass(frozen=True)
class Plan:
    """How large an ablation is."""

    images: int = 6000
    """Training images, drawn once with a fixed seed; 0 takes all."""
    epochs: int = 10
    seeds: int = 3
    learning_rate: float = 1e-2
    threads: int = 1

    def config(self, variant: Variant, seed: int, backbone: str) -> TrainingConfig:
        """The configuration of one run."""
        return TrainingConfig(
            backbone=backbone,
            fusion=variant.fusion,
            alpha=variant.alpha,
            clusters=variant.clusters,
            attentive=variant.attentive,
            epochs=self.epochs,
            batch_size=64,
            learning_rate=self.learning_rate,
            warmup_epochs=0.5,
            ema_decay=EMA_DECAY,
            augmentation=NO_AUGMENTATION,
            seed=seed,
            threads=self.threads,
        )


@dataclass(frozen=True, eq=False)
class Cached:
    """Features of N images beside what is to be learnt from them."""

    features: Features
    """[N,7,7,C] float16, F_o; may be a memory map."""
    targets: NDArray[np.float32]
    """[N,K]."""
    classes: NDArray[np.int64]
    """[N]."""
    angles: NDArray[np.float64]
    """[N] head pose in degrees, NaN where no face was found."""

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """F_o [n,C,7,7] float32 of some images."""
        return torch.from_numpy(self.features[indices].astype(np.float32)).permute(0, 3, 1, 2)


def run_ablation(
    paths: RunPaths, backbone: str, plan: Plan, variants: Sequence[Variant] = VARIANTS
) -> list[dict[str, Any]]:
    """Train every variant with every seed into folders below `paths.run`; those done are kept.

    Returns all results, also in RESULTS there. Raises DatasetError, CheckpointError.
    """
    torch.set_num_threads(plan.threads)
    done = read_results(paths.run)
    finished = {(row["variant"], row["seed"]) for row in done}
    wanted = [(v, seed) for seed in range(plan.seeds) for v in variants]
    missing = [(v, seed) for v, seed in wanted if (v.name, seed) not in finished]
    if not missing:
        return done
    train, validation, origin = _prepare(paths, backbone, plan)
    maps: dict[tuple[int, str], NDArray[np.uint8]] = {}
    for variant, seed in missing:
        key = (variant.clusters, variant.attentive)
        if variant.alpha and key not in maps:
            maps[key] = compute_guidance(
                train.features, clusters=variant.clusters, attentive=variant.attentive
            ).maps
        started = time.monotonic()
        config = plan.config(variant, seed, backbone)
        network = train_head(_network(paths, config, origin), train, maps.get(key), config)
        row = {"variant": variant.name, "seed": seed, **_measure(network, validation)}
        row["minutes"] = round((time.monotonic() - started) / 60, 2)
        _save(paths.run, row, network, config, origin)
        done.append(row)
        print(json.dumps(row), flush=True)
    return done


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows that an ablation in `folder` has so far."""
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def train_head(
    network: Lan, train: Cached, maps: NDArray[np.uint8] | None, config: TrainingConfig
) -> Lan:
    """Train attention and classifier; the average of their weights, in evaluation mode."""
    network.train().backbone.requires_grad_(False)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = make_optimizer(network, config)
    count, size = len(train.classes), config.batch_size
    steps = max(1, count // size)
    for epoch in range(config.epochs):
        for step, chosen in enumerate(_shuffled(count, size, (config.seed, epoch))):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, (epoch + step / steps) / config.epochs)
            guidance = torch.zeros(len(chosen), 7, 7)
            if maps is not None:
                guidance = torch.from_numpy(maps[chosen].astype(np.float32))
            targets = torch.from_numpy(train.targets[chosen])
            loss = lan_loss(network.head(train.batch(chosen)), targets, guidance, config.alpha)
            optimizer.zero_grad(set_to_none=True)
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            update_average(average, network, config.ema_decay)
    return average.eval()


def _shuffled(count: int, size: int, seed: tuple[int, int]) -> Iterator[NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    for start in range(0, max(1, count - size + 1), size):
        # In order of the file: a memory map is read forwards.
        yield np.sort(order[start : start + size])


@torch.inference_mode()
def _measure(network: Lan, validation: Cached) -> dict[str, float]:
    count = len(validation.classes)
    parts = [
        network.head(validation.batch(np.arange(start, min(start + EVALUATION_BATCH, count))))
        for start in range(0, count, EVALUATION_BATCH)
    ]
    logits = torch.cat([part.logits for part in parts]).numpy()
    evaluation = Evaluation(logits, validation.classes)
    figures = evaluation.summary()
    for degrees in POSE_DEGREES:
        turned = validation.angles > degrees
        if turned.any():
            figures[f"over_{degrees}"] = evaluation.subset(turned).accuracy
    return {name: round(value, 5) for name, value in figures.items()}


# --- data and files ----------------------------------------------------------------------------


def _prepare(paths: RunPaths, backbone: str, plan: Plan) -> tuple[Cached, Cached, dict[str, Any]]:
    train, validation = load_splits(TrainingConfig(), paths, final=False)
    if 0 < plan.images < len(train):
        kept = np.zeros(len(train), dtype=bool)
        kept[np.random.default_rng(0).permutation(len(train))[: plan.images]] = True
        train = train.subset(kept)
    origin = provenance_of(train, paths, final=False)
    origin["protocol"] += "; backbone frozen, head alone trained"
    network = load_backbone(backbone, paths.weights).eval()
    found = []
    for name, split in (("train", train), ("validation", validation)):
        prepared = prepare_split(split, paths)
        found.append(_cached(prepared, network, paths.run / f"features-{name}"))
    return found[0], found[1], origin


def _cached(prepared: PreparedSplit, backbone: Backbone, stem: Path) -> Cached:
    inputs = {
        "images": file_digests(prepared.split.paths),
        "matrices": prepared.faces.matrices.round(6).tolist(),
        "weights": weights_digest(backbone),
    }
    store = stem.with_name(f"{stem.name}-{cache_key(inputs)}.npy")
    crops = CropDataset(prepared.split, prepared.faces, backbone.input_size)
    features = store_features(backbone, crops, store, backbone.feature_channels)
    split, angles = prepared.split, head_angles(prepared.faces.landmarks)
    return Cached(features, split.targets, split.classes, angles)


def _network(paths: RunPaths, config: TrainingConfig, origin: dict[str, Any]) -> Lan:
    torch.manual_seed(config.seed)
    return Lan(
        load_backbone(config.backbone, paths.weights),
        len(origin["labels"]),
        fusion=config.fusion,
        dropout=config.dropout,
    )


def _save(
    folder: Path,
    row: dict[str, Any],
    network: Lan,
    config: TrainingConfig,
    origin: dict[str, Any],
) -> None:
    run = folder / f"{row['variant']}-seed{row['seed']}"
    run.mkdir(parents=True, exist_ok=True)
    state = {
        "config": config.as_dict(),
        "provenance": origin,
        "epoch": config.epochs,
        "score": row["accuracy"],
        "average": network.state_dict(),
    }
    torch.save(state, run / BEST)
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
