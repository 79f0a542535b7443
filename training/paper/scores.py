"""What a model answers on a split, stored once and read by every table and figure."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.expression import ExpressionModel
from service.faces.alignment import head_pose
from service.runtime import SessionSettings
from training.assessment import POSE_DEGREES, assess
from training.crops import CropDataset
from training.datasets.lists import select
from training.datasets.records import DatasetError, Part, arranged
from training.datasets.registry import find_dataset
from training.evaluation import Evaluation
from training.pipeline import PreparedSplit, RunPaths, prepare_split
from training.release import load_part

ARRAYS, FACTS = "scores.npz", "scores.json"


@dataclass(frozen=True)
class Facts:
    """Which model was measured on what."""

    model: str
    sha256: str
    fusion: str
    backbone: str
    labels: tuple[str, ...]
    dataset: str
    """Name in the registry."""
    part: str
    fold: int
    listed: str = ""
    """Name of the list that chose the images, empty for the whole split."""
    found: str = ""
    """How many of the list's images were found."""


@dataclass(frozen=True, eq=False)
class Scores:
    """N answers."""

    facts: Facts
    evaluation: Evaluation
    yaw: NDArray[np.float64]
    """[N] degrees, NaN where no face was found; positive: turned to the viewer's right."""
    pitch: NDArray[np.float64]
    """[N] degrees, NaN where no face was found."""
    paths: tuple[str, ...]
    """[N] image files."""

    @property
    def angles(self) -> NDArray[np.float64]:
        """[N] the larger of |yaw| and |pitch|."""
        return np.maximum(np.abs(self.yaw), np.abs(self.pitch))

    def examples(self, each: int = 8) -> NDArray[np.int64]:
        """Right answers, then wrong ones, on turned heads: up to `each`, drawn alike each time."""
        turned = self.angles > POSE_DEGREES[0]
        right = self.evaluation.predicted == self.evaluation.classes
        rng = np.random.default_rng(0)
        parts = [np.flatnonzero(turned & right), np.flatnonzero(turned & ~right)]
        return np.concatenate([rng.permutation(part)[:each] for part in parts])

    def save(self, folder: Path) -> None:
        """Write ARRAYS and FACTS into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / ARRAYS,
            logits=self.evaluation.logits,
            classes=self.evaluation.classes,
            yaw=self.yaw,
            pitch=self.pitch,
            paths=np.array(self.paths),
        )
        (folder / FACTS).write_text(json.dumps(dataclasses.asdict(self.facts), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """What `save` wrote. Raises DatasetError where it is not there."""
        if not (folder / FACTS).is_file() or not (folder / ARRAYS).is_file():
            raise DatasetError(f"{folder}: no {ARRAYS}; `python -m training paper score` writes it")
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        with np.load(folder / ARRAYS) as stored:
            return cls(
                Facts(**facts | {"labels": tuple(facts["labels"])}),
                Evaluation(stored["logits"], stored["classes"]),
                stored["yaw"],
                stored["pitch"],
                tuple(stored["paths"].tolist()),
            )


def yaw_and_pitch(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N,5,2] landmarks -> [2,N] yaw and pitch in degrees; NaN without a face."""
    angles = np.full((2, len(landmarks)), np.nan)
    for index, points in enumerate(landmarks):
        if np.isfinite(points).all():
            pose = head_pose(points)
            angles[:, index] = pose.yaw, pose.pitch
    return angles


def measure(model_path: Path, paths: RunPaths, part: Part, listed: Path | None = None) -> Scores:
    """Run an ONNX model over a split, or over those of its images that the list `listed` names.

    Raises DatasetError where the model does not know a class of the split.
    """
    model = ExpressionModel.load(model_path, SessionSettings("cpu"))
    prepared, found = sample(paths, part, model.contract.labels, listed=listed)
    crops = CropDataset(prepared.split, prepared.faces, model.contract.input_size)
    contract = model.contract
    facts = Facts(
        contract.name,
        model.sha256,
        contract.fusion,
        contract.backbone,
        contract.labels,
        paths.dataset,
        part,
        paths.fold if find_dataset(paths.dataset).folds else 0,
        listed.name if listed else "",
        found,
    )
    yaw, pitch = yaw_and_pitch(prepared.faces.landmarks)
    files = tuple(str(path) for path in prepared.split.paths)
    return Scores(facts, assess(model, crops), yaw, pitch, files)


def sample(
    paths: RunPaths,
    part: Part,
    labels: tuple[str, ...],
    *,
    listed: Path | None = None,
    images: int = 0,
) -> tuple[PreparedSplit, str]:
    """A split's labelled images (with `images`, so many, drawn with a fixed seed) and their faces.

    Also what was found of the list `listed`. Raises DatasetError where `labels` lacks one of the
    split's classes.
    """
    split, found = load_part(paths, part, majority_only=listed is None), ""
    if listed is not None:
        selected = select(split, listed)
        split, found = selected.split, selected.summary()
    split = arranged(split, labels)
    if 0 < images < len(split):
        kept = np.zeros(len(split), dtype=bool)
        kept[np.random.default_rng(0).permutation(len(split))[:images]] = True
        split = split.subset(kept)
    return prepare_split(split, paths), found
