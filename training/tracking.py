"""What a run was, on what machine and data, in its folder; and runs side by side."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from training.backbones import CheckpointError
from training.config import TrainingConfig
from training.datasets.records import Split, file_digests
from training.trainer import BEST, CHECKPOINT, METRICS, fading_epochs

RUN_FILE = "run.json"
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "scikit-learn")
# What always differs and says nothing about why one run is better.
UNTOLD = frozenset({"labels", "commit", "torch", "python"})


def data_fingerprint(split: Split) -> str:
    """SHA-256 (hex) over the images' bytes and their targets, whatever their order."""
    lines = [
        f"{digest} {target.round(6).tolist()}"
        for digest, target in zip(file_digests(split.paths), split.targets, strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions and machine, as far as results and speed depend on them."""
    cuda = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def write_run_file(
    folder: Path, config: TrainingConfig, provenance: dict[str, Any], train: Split
) -> None:
    """Write RUN_FILE: configuration, provenance, environment and the data's fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "config": config.as_dict(),
        "provenance": provenance,
        "environment": environment(),
        "data": {"images": len(train), "sha256": data_fingerprint(train)},
    }
    (folder / RUN_FILE).write_text(json.dumps(told, indent=1) + "\n")


def compare_runs(folders: Sequence[Path]) -> str:
    """Runs side by side, Markdown: where their choices differ, then what came out.

    Raises CheckpointError for a folder that holds no run.
    """
    columns = [_told(folder) for folder in folders]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = []
    for name in names:
        values = [_text(column.get(name)) for column in columns]
        if len(set(values)) > 1 or name.startswith("result: "):
            rows.append([name, *values])
    header = ["", *(folder.name for folder in folders)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(folder: Path) -> dict[str, Any]:
    run_file = folder / RUN_FILE
    stored: dict[str, Any] = json.loads(run_file.read_text()) if run_file.is_file() else {}
    if not stored:
        checkpoint = next((folder / n for n in (BEST, CHECKPOINT) if (folder / n).is_file()), None)
        if checkpoint is None:
            raise CheckpointError(f"{folder}: no run ({RUN_FILE} or {BEST}); name a run's folder")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stored = {name: state[name] for name in ("config", "provenance")}
        stored["score"] = {"epoch": state["epoch"], "accuracy": round(state["score"], 5)}
    # Fields that the configuration did not have yet count as their defaults.
    known = TrainingConfig.from_dict(stored["config"])
    config = known.as_dict()
    augmentation = {f"augmentation {k}": v for k, v in config.pop("augmentation").items()}
    choices = {k: v for k, v in stored["provenance"].items() if k not in UNTOLD}
    told = {**config, **augmentation, **choices}
    told |= {f"data {name}": value for name, value in stored.get("data", {}).items()}
    return told | {f"result: {k}": v for k, v in _results(folder, stored, known).items()}


def _results(folder: Path, stored: dict[str, Any], config: TrainingConfig) -> dict[str, Any]:
    path = folder / METRICS
    epochs = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if not epochs:
        return dict(stored.get("score", {}))
    # Networks on their way to ReLUs are not kept.
    kept = [metrics for metrics in epochs if metrics["epoch"] >= fading_epochs(config)] or epochs
    best = max(kept, key=lambda metrics: metrics.get("accuracy", 0.0))
    return {"epochs done": epochs[-1]["epoch"], **best}


def _text(value: object) -> str:
    return "-" if value is None else str(value)
