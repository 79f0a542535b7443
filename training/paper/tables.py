"""The paper's tables, as Markdown, from stored scores; the paper's numbers beside ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.assessment import POSE_DEGREES, slices
from training.datasets.records import PARTS, DatasetError
from training.datasets.registry import find_dataset
from training.paper.ablation import VARIANTS
from training.paper.scores import Scores
from training.pipeline import RunPaths
from training.release import load_part

# Cho & Lee, 2022: accuracy in per cent.
PAPER_ACCURACY = {"kdef": 95.39, "rafdb": 87.09, "ferplus": 88.45, "affectnet8": 60.88}
PAPER_POSE = {
    "ferplus": (87.18, 85.31),
    "rafdb": (87.33, 85.66),
    "affectnet8": (58.44, 58.09),
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def data_table(paths: RunPaths) -> str:
    """Table 1: images of each split and class, as the loader finds them. Raises DatasetError."""
    dataset = find_dataset(paths.dataset)
    rows: list[list[str]] = []
    labels: tuple[str, ...] = ()
    for part in PARTS:
        try:
            split = load_part(paths, part)
        except DatasetError as error:
            rows.append([part, f"not there ({error})"])
            continue
        labels = split.labels
        counts = np.bincount(split.classes[split.classes >= 0], minlength=len(labels))
        rows.append([part, str(len(split)), *map(str, counts)])
    if not labels:
        raise DatasetError(f"{paths.data}: no split can be read; expected {dataset.layout}")
    width = len(labels) + 2
    padded = [row + [""] * (width - len(row)) for row in rows]
    title = f"{dataset.title}, {dataset.protocol}"
    return f"{title}\n\n" + table(["split", "images", *labels], padded)


def _setting(scores: Scores) -> str:
    facts = scores.facts
    listed = f", {facts.listed}: {facts.found}" if facts.listed else ""
    return f"{facts.dataset}, {facts.part}{listed}"


def kdef_table(scores: Sequence[Scores]) -> str:
    """Table 2: KDEF, mean over the folds that were measured, by images and by person."""
    by_protocol: dict[str, list[Scores]] = defaultdict(list)
    for one in scores:
        if one.facts.dataset.startswith("kdef"):
            by_protocol[one.facts.dataset].append(one)
    if not by_protocol:
        raise DatasetError("none of these scores is of KDEF; measure with --dataset kdef")
    rows = []
    for name, folds in sorted(by_protocol.items()):
        values = [100 * fold.evaluation.accuracy for fold in folds]
        spread = f"{np.mean(values):.2f} ± {np.std(values):.2f}"
        number = len({fold.facts.fold for fold in folds})
        paper = f"{PAPER_ACCURACY['kdef']:.2f}" if name == "kdef-images" else "-"
        rows.append([find_dataset(name).protocol, f"{number} of 10", spread, paper])
    return table(["protocol", "folds measured", "accuracy, %", "paper, %"], rows)


def accuracy_table(scores: Sequence[Scores]) -> str:
    """Table 3: accuracy on each data set in the wild."""
    rows = []
    for one in scores:
        summary = one.evaluation.summary()
        paper = PAPER_ACCURACY.get(one.facts.dataset)
        rows.append(
            [
                f"{one.facts.model} ({one.facts.backbone}, {one.facts.fusion})",
                _setting(one),
                str(len(one.evaluation.classes)),
                f"{100 * summary['accuracy']:.2f}",
                f"{100 * summary['mean_recall']:.2f}",
                "-" if paper is None else f"{paper:.2f}",
            ]
        )
    header = ["model", "split", "images", "accuracy, %", "mean recall, %", "paper (test), %"]
    return table(header, rows)


def pose_table(scores: Sequence[Scores]) -> str:
    """Table 5: heads turned over 30 and 45 degrees, by our own estimate or by a list's choice."""
    rows = []
    for one in scores:
        paper = PAPER_POSE.get(one.facts.dataset)
        if one.facts.listed:
            degrees = 45 if "45" in one.facts.listed else 30
            beside = f"{paper[degrees == 45]:.2f}" if paper else "-"
            count, accuracy = len(one.evaluation.classes), one.evaluation.accuracy
            rows.append([_setting(one), str(count), f"{100 * accuracy:.2f}", beside])
            continue
        for part in slices(one.evaluation, one.angles):
            over = [str(d) in part.name for d in POSE_DEGREES]
            beside = f"{paper[over.index(True)]:.2f}" if paper and any(over) else "-"
            name = f"{_setting(one)}: {part.name}"
            rows.append([name, str(part.images), f"{100 * part.accuracy:.2f}", beside])
    return table(["images", "count", "accuracy, %", "paper (its lists), %"], rows)


METHODS = ("baseline", "alpha-0", "alpha-0.5")
FUSED = ("alpha-0.5", "concat", "mean", "clusters-3", "largest")
TITLES = {
    "baseline": "backbone alone",
    "alpha-0": "LAN without guidance (alpha 0)",
    "alpha-0.5": "LAN, add, alpha 0.5, smaller of 2 clusters",
    "concat": "LAN, concat",
    "mean": "LAN, mean",
    "clusters-3": "LAN, smallest of 3 clusters",
    "largest": "LAN, larger of 2 clusters",
}


def ablation_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Tables 4 and 6: variants of an ablation, mean and standard deviation over its seeds.

    Raises DatasetError where none of `names` was run.
    """
    known = [v.name for v in VARIANTS]
    lines = []
    for name in (n for n in names if n in known):
        runs = [row for row in rows if row["variant"] == name]
        if runs:
            figures = [
                _spread([row.get(key, float("nan")) for row in runs])
                for key in ("accuracy", "mean_recall", "over_30", "over_45")
            ]
            lines.append([TITLES.get(name, name), str(len(runs)), *figures])
    if not lines:
        raise DatasetError(f"none of {', '.join(names)} is in these results")
    header = ["method", "seeds", "accuracy, %", "mean recall, %", "pose > 30, %", "pose > 45, %"]
    return table(header, lines)


def _spread(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values):.2f}"
