"""Do guidance maps follow head pose, as the paper assumes? Numbers, whatever comes out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.model_selection import cross_val_predict

Float64 = NDArray[np.float64]

# Borders of the buckets of yaw, degrees; positive: turned to the viewer's right.
YAW_BORDERS = (-30.0, -15.0, 15.0, 30.0)
TURNED_DEGREES = 30.0
FOLDS = 5


def bucket_names() -> list[str]:
    """One name a bucket of yaw, from left to right."""
    borders = [f"{border:g}" for border in YAW_BORDERS]
    inner = [f"{a} to {b}" for a, b in itertools.pairwise(borders)]
    return [f"under {borders[0]}", *inner, f"over {borders[-1]}"]


def by_bucket(maps: ArrayLike, yaw: Float64) -> tuple[Float64, NDArray[np.int64]]:
    """Mean map [B,G,G] and number of images [B] of each bucket of yaw; NaN where it is empty."""
    values, known = np.asarray(maps, np.float64), np.isfinite(yaw)
    buckets = np.digitize(yaw[known], YAW_BORDERS)
    count = np.bincount(buckets, minlength=len(YAW_BORDERS) + 1)
    sums = np.zeros((len(count), *values.shape[1:]))
    np.add.at(sums, buckets, values[known])
    with np.errstate(invalid="ignore"):
        return sums / count[:, None, None], count.astype(np.int64)


def position_auc(maps: ArrayLike, positive: NDArray[np.bool_]) -> Float64:
    """[G,G] area under the ROC curve with which each position's value tells `positive` images.

    0.5 is nothing, 1 everything; below 0.5 the value is lower in them.
    """
    values = np.asarray(maps, np.float64)
    flat = values.reshape(len(values), -1)
    ranks = rankdata(flat, axis=0)
    count = int(positive.sum())
    others = len(flat) - count
    if not count or not others:
        return np.full(values.shape[1:], np.nan)
    area = (ranks[positive].sum(0) - count * (count + 1) / 2) / (count * others)
    return np.asarray(area.reshape(values.shape[1:]), np.float64)


def position_information(maps: NDArray[np.uint8], groups: NDArray[np.int64]) -> Float64:
    """[G,G] mutual information, in bits, between each position's bit and the group of an image."""
    flat = maps.reshape(len(maps), -1)
    bits = [mutual_info_score(column, groups) / np.log(2) for column in flat.T]
    return np.array(bits, np.float64).reshape(maps.shape[1:])


def map_auc(maps: ArrayLike, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of a linear reading of whole maps, cross-validated.

    NaN where there are too few images to hold some out.
    """
    values = np.asarray(maps, np.float64)
    if min(positive.sum(), (~positive).sum()) < FOLDS:
        return float("nan")
    flat = values.reshape(len(values), -1)
    reader = LogisticRegression(max_iter=300, class_weight="balanced")
    scores = cross_val_predict(reader, flat, positive, cv=FOLDS, method="decision_function")
    return float(roc_auc_score(positive, scores))


@dataclass(frozen=True, eq=False)
class PoseStudy:
    """What maps [N,G,G] know of head pose and, for comparison, of the expression."""

    images: int
    buckets: NDArray[np.int64]
    """[B] images a bucket of yaw."""
    means: Float64
    """[B,G,G]."""
    turned: Float64
    """[G,G] AUC for |yaw| over TURNED_DEGREES."""
    side: Float64
    """[G,G] AUC for turned to the viewer's right, among turned faces."""
    turned_by_map: float
    """AUC of the whole map for |yaw| over TURNED_DEGREES."""
    side_by_map: float
    """AUC of the whole map for turned to the viewer's right, among turned faces."""
    classes_by_map: dict[str, float]
    """AUC of the whole map for each expression."""


def study_pose(
    maps: ArrayLike, yaw: Float64, classes: NDArray[np.int64], labels: tuple[str, ...]
) -> PoseStudy:
    """`maps` [N,G,G] bits or attention; `yaw` [N] degrees or NaN; `classes` [N] or -1."""
    known = np.isfinite(yaw)
    values, yaw, classes = np.asarray(maps, np.float64)[known], yaw[known], classes[known]
    means, counts = by_bucket(values, yaw)
    turned = np.abs(yaw) > TURNED_DEGREES
    side = yaw[turned] > 0
    labelled = classes >= 0
    return PoseStudy(
        len(values),
        counts,
        means,
        position_auc(values, turned),
        position_auc(values[turned], side),
        map_auc(values, turned),
        map_auc(values[turned], side),
        {
            label: map_auc(values[labelled], classes[labelled] == index)
            for index, label in enumerate(labels)
        },
    )


def yaw_information(maps: NDArray[np.uint8], yaw: Float64) -> tuple[Float64, float]:
    """[G,G] bits between each position and the bucket of yaw, and their mean for shuffled images.

    The second is what chance alone gives.
    """
    known = np.isfinite(yaw)
    groups = np.digitize(yaw[known], YAW_BORDERS).astype(np.int64)
    shuffled = np.random.default_rng(0).permutation(groups)
    chance = float(position_information(maps[known], shuffled).mean())
    return position_information(maps[known], groups), chance


def pose_report(title: str, study: PoseStudy) -> str:
    """The numbers as Markdown."""
    spread = np.abs(study.turned - 0.5)
    at = np.unravel_index(int(spread.argmax()), spread.shape)
    counts = zip(bucket_names(), study.buckets, strict=True)
    classes = ", ".join(f"{name} {auc:.2f}" for name, auc in study.classes_by_map.items())
    return "\n".join(
        (
            f"**{title}**, {study.images} images; by yaw: "
            + ", ".join(f"{name}: {count}" for name, count in counts),
            "",
            "| asked of | AUC |",
            "| --- | --- |",
            f"| whole map: head turned over {TURNED_DEGREES:g} degrees | "
            f"{study.turned_by_map:.3f} |",
            f"| whole map: to which side | {study.side_by_map:.3f} |",
            f"| best position (row {at[0]}, column {at[1]}): turned | {study.turned[at]:.3f} |",
            f"| mean distance from 0.5 over positions: turned | {spread.mean():.3f} |",
            f"| mean distance from 0.5 over positions: side | "
            f"{np.abs(study.side - 0.5).mean():.3f} |",
            f"| whole map: expression | {classes} |",
        )
    )
