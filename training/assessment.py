"""An exported model on a split, through the service's own classes: the card's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.expression import ExpressionModel
from service.faces.alignment import head_pose
from training.calibration import doubt, reliability
from training.crops import CropDataset
from training.evaluation import Evaluation
from training.progress import progress

POSE_DEGREES = (30, 45)


def assess(
    model: ExpressionModel, crops: CropDataset, *, mirrored: bool = False, batch_size: int = 32
) -> Evaluation:
    """Logits of the ONNX file on the plain crops of a split whose images have hard labels.

    `mirrored`: the mean of the logits of each crop and of its mirror image, at twice the cost.
    """
    logits: list[NDArray[np.float32]] = []
    starts = range(0, len(crops), batch_size)
    for start in progress(starts, "assess", len(starts), unit="batch"):
        indices = range(start, min(start + batch_size, len(crops)))
        images = [crops[i][0].permute(1, 2, 0).numpy() for i in indices]
        given = np.stack([reading.logits for reading in model.infer(images)])
        if mirrored:
            turned = [np.ascontiguousarray(image[:, ::-1]) for image in images]
            both = given + np.stack([reading.logits for reading in model.infer(turned)])
            given = np.asarray(both / 2, np.float32)
        logits.extend(given)
    return Evaluation(np.stack(logits), crops.split.classes)


def head_angles(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N,5,2] landmarks -> [N] the larger of |yaw| and |pitch| in degrees; NaN without a face.

    Roll does not count: alignment takes it out.
    """
    angles = np.full(len(landmarks), np.nan)
    for index, points in enumerate(landmarks):
        if np.isfinite(points).all():
            pose = head_pose(points)
            angles[index] = max(abs(pose.yaw), abs(pose.pitch))
    return angles


@dataclass(frozen=True)
class Slice:
    """Accuracy on a part of the split."""

    name: str
    images: int
    accuracy: float
    mean_recall: float


def slices(evaluation: Evaluation, angles: NDArray[np.float64]) -> list[Slice]:
    """The whole split, and the faces turned (yaw or pitch) by more than 30 and 45 degrees."""
    parts = [("all", np.ones(len(angles), dtype=bool))]
    parts += [(f"head pose over {d} degrees", angles > d) for d in POSE_DEGREES]
    found = []
    for name, kept in parts:
        if kept.any():
            part = evaluation.subset(kept)
            recall = part.summary()["mean_recall"]
            found.append(Slice(name, int(kept.sum()), part.accuracy, recall))
    return found


def report(model: ExpressionModel, evaluation: Evaluation, angles: NDArray[np.float64]) -> str:
    """Figures as text: slices, recall of each class, calibration."""
    lines = [
        f"{s.name}: {100 * s.accuracy:.2f}% of {s.images}, mean recall {100 * s.mean_recall:.2f}%"
        for s in slices(evaluation, angles)
    ]
    recalls = dict(zip(model.contract.labels, evaluation.recalls(), strict=True))
    found = {name: recall for name, recall in recalls.items() if np.isfinite(recall)}
    lines.append("recall: " + ", ".join(f"{name} {100 * r:.1f}%" for name, r in found.items()))
    if absent := [name for name in recalls if name not in found]:
        lines.append(
            f"no image of {', '.join(absent)}: mean recall is over {len(found)} of {len(recalls)} "
            "classes, and an answer of a class without images counts as wrong"
        )
    error = reliability(evaluation, model.contract.temperature).error
    lines.append(
        f"expected calibration error {100 * error:.2f}% "
        f"at temperature {model.contract.temperature:.3f}"
    )
    if doubtful := doubt(model.contract.temperature):
        lines.append(f"warning: {doubtful}")
    return "\n".join(lines)


def comparison(
    labels: Sequence[str], before: Evaluation, after: Evaluation, angles: NDArray[np.float64]
) -> str:
    """Two networks on the same images as text: slices, recall of each class, the largest drop."""
    figures = [
        (s.name, s.accuracy, t.accuracy)
        for s, t in zip(slices(before, angles), slices(after, angles), strict=True)
    ]
    recalls = zip(labels, before.recalls(), after.recalls(), strict=True)
    figures += [(f"recall of {name}", a, b) for name, a, b in recalls if np.isfinite(a)]
    lines = [f"{name}: {100 * a:.2f}% -> {100 * b:.2f}%" for name, a, b in figures]
    name, a, b = max(figures, key=lambda figure: figure[1] - figure[2])
    same = (before.predicted == after.predicted).mean()
    lines.append(f"largest drop: {100 * (a - b):.2f} points ({name})")
    lines.append(f"the same answer for {100 * same:.2f}% of {len(after.classes)} images")
    return "\n".join(lines)
