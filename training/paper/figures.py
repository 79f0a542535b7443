"""The pictures: each function draws one figure to one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from service.heatmap import heat_overlay
from training.evaluation import Evaluation
from training.paper.cams import ActivationMaps
from training.paper.faithfulness import ORDERS, Curves
from training.paper.guidance_study import PoseStudy, bucket_names
from training.paper.scores import Scores

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Small enough for a repository, large enough to read.
DPI = 72
COLOURS = {"attention": "tab:red", "evidence": "tab:blue", "random": "grey", "centre": "black"}


def save(figure: Figure, path: Path) -> None:
    """Write and close `figure`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def show(axes: Axes, picture: NDArray[np.uint8], title: str = "") -> None:
    """A picture without ticks."""
    axes.imshow(picture)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_activation_maps(
    path: Path, maps: Sequence[ActivationMaps], baseline: Sequence[ActivationMaps] | None
) -> None:
    """Figures 3 and 4: a face a row; the baseline's map where there is one, then the LAN's."""
    extra = 0 if baseline is None else 1
    shape = (len(maps), 5 + extra)
    figure, grid = plt.subplots(
        *shape, figsize=(2.0 * shape[1], 2.2 * shape[0]), squeeze=False, layout="constrained"
    )
    for row, lan in enumerate(maps):
        show(grid[row, 0], lan.crop, "face")
        if baseline is not None:
            plain = heat_overlay(baseline[row].crop, baseline[row].f, signed=True)
            show(grid[row, 1], plain, f"baseline: {baseline[row].label}")
        for column, (name, values) in enumerate(
            (("F_o", lan.f_o), ("F_a", lan.f_a), ("f", lan.f)), 1 + extra
        ):
            title = f"LAN {name}: {lan.label}"
            show(grid[row, column], heat_overlay(lan.crop, values, signed=True), title)
        last = heat_overlay(lan.crop, lan.attention, signed=False)
        show(grid[row, 4 + extra], last, "attention F_m")
    save(figure, path)


def draw_confusions(
    path: Path, parts: Sequence[tuple[str, Evaluation]], labels: Sequence[str]
) -> None:
    """Figure 5: confusion matrices side by side, per cent of each true class."""
    count = len(parts)
    figure, grid = plt.subplots(
        1, count, figsize=(4.6 * count, 4.6), squeeze=False, layout="constrained"
    )
    for axes, (title, evaluation) in zip(grid[0], parts, strict=True):
        draw_confusion(axes, evaluation, labels)
        accuracy = 100 * evaluation.accuracy
        axes.set_title(f"{title}\n{accuracy:.1f}% of {len(evaluation.classes)}", fontsize=10)
    save(figure, path)


def draw_confusion(axes: Axes, evaluation: Evaluation, labels: Sequence[str]) -> None:
    """One matrix; a row without images stays empty."""
    counts = evaluation.confusion()
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        if totals[row, 0]:
            colour = "white" if shares[row, column] > 0.6 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def draw_examples(
    path: Path, scores: Scores, pictures: Sequence[NDArray[np.uint8]], chosen: NDArray[np.int64]
) -> None:
    """Figure 6: `pictures` of the images `chosen`, the true and the predicted class above each."""
    columns = 8
    rows = -(-len(chosen) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.5 * columns, 1.9 * rows), squeeze=False, layout="constrained"
    )
    labels, evaluation = scores.facts.labels, scores.evaluation
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index, picture in zip(grid.flat, chosen, pictures, strict=False):
        true, predicted = evaluation.classes[index], evaluation.predicted[index]
        show(axes, picture)
        wrong = true != predicted
        text = f"{labels[true]}\nread as {labels[predicted]}" if wrong else f"{labels[true]}\n"
        axes.set_title(text, fontsize=7, color="tab:red" if wrong else "black")
    save(figure, path)


def draw_alpha(
    path: Path, points: Sequence[tuple[float, NDArray[np.float64]]], baseline: NDArray[np.float64]
) -> None:
    """Figure 7: accuracy (0..1, one a seed) against alpha, and the baseline's as a line."""
    figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    alphas = [alpha for alpha, _ in points]
    for alpha, values in points:
        axes.scatter([alpha] * len(values), 100 * values, color="tab:blue", s=14, alpha=0.5)
    axes.plot(alphas, [100 * v.mean() for _, v in points], color="tab:blue", label="LAN, mean")
    if len(baseline):
        axes.axhline(100 * baseline.mean(), color="grey", linestyle="--", label="baseline, mean")
    axes.set(xlabel="alpha", ylabel="accuracy, %")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    save(figure, path)


def draw_curves(path: Path, curves: Curves) -> None:
    """Deletion and insertion, mean over the images with the standard error of it as a band."""
    figure, pair = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for axes, kind in zip(pair, ("deletion", "insertion"), strict=True):
        for name in ORDERS:
            values = curves.deletion[name] if kind == "deletion" else curves.insertion[name]
            mean, error = values.mean(0), values.std(0) / np.sqrt(len(values))
            axes.plot(curves.shares, mean, color=COLOURS[name], label=name, marker=".")
            axes.fill_between(
                curves.shares, mean - error, mean + error, color=COLOURS[name], alpha=0.15
            )
        share = "taken away" if kind == "deletion" else "shown"
        axes.set(title=kind, xlabel=f"share of the crop {share}", ylim=(0, 1))
        axes.grid(visible=True, alpha=0.3)
    pair[0].set_ylabel("probability of the answer")
    pair[0].legend()
    save(figure, path)


def draw_pose_study(
    path: Path, studies: Sequence[tuple[str, PoseStudy, NDArray[np.float64]]]
) -> None:
    """A row a kind of map: its mean over all images, then by bucket of yaw, then the AUC."""
    names = bucket_names()
    shape = (len(studies), len(names) + 2)
    figure, grid = plt.subplots(
        *shape, figsize=(1.75 * shape[1], 2.1 * shape[0]), squeeze=False, layout="constrained"
    )
    for row, (title, study, mean) in enumerate(studies):
        top = float(np.nanmax([mean.max(), np.nanmax(study.means)]))
        panels = [(f"{title}: all", mean)]
        panels += [
            (f"yaw {name} ({count})", values)
            for name, count, values in zip(names, study.buckets, study.means, strict=True)
        ]
        for axes, (name, values) in zip(grid[row], panels, strict=False):
            draw_grid(axes, values, name, limits=(0, top), colours="inferno")
        last = grid[row, -1]
        draw_grid(last, study.turned, "AUC: turned > 30", limits=(0.2, 0.8), colours="RdBu_r")
    save(figure, path)


def draw_grid(
    axes: Axes,
    values: NDArray[np.float64],
    title: str,
    *,
    limits: tuple[float, float],
    colours: str,
) -> None:
    """One map [G,G] with its numbers."""
    low, high = limits
    axes.imshow(values, cmap=colours, vmin=low, vmax=high)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if np.isfinite(value):
            middle = 0.25 < (value - low) / max(high - low, 1e-9) < 0.75
            dark = colours == "inferno" and (value - low) / max(high - low, 1e-9) < 0.6
            colour = "black" if (middle and colours != "inferno") or not dark else "white"
            text = f"{100 * value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=5)
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
