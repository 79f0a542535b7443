"""Is the heat map faithful? Deletion and insertion curves (Petsiuk et al., BMVC 2018).

Cells of the 7 x 7 grid are taken away, or brought back, in the order of a map; a map that shows
what the answer rests on makes the answer's probability fall fast, or rise fast. Two orders that
know nothing of the network are the measure: random, and from the middle of the crop outwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from service.expression import ExpressionModel, Reading
from training.progress import progress

UInt8 = NDArray[np.uint8]
Fill = Literal["blur", "mean"]
ORDERS = ("attention", "evidence", "random", "centre")
# Cells taken away at the points of a curve; 0 and all are added.
LEVELS = (3, 6, 10, 15, 20, 27, 35)
BOOTSTRAPS = 2000


@dataclass(frozen=True, eq=False)
class Curves:
    """Probability of the class first answered, over N images and L levels."""

    shares: NDArray[np.float64]
    """[L] share of the crop taken away (deletion) or shown (insertion), from 0 to 1."""
    deletion: dict[str, NDArray[np.float64]]
    """[N,L] by order."""
    insertion: dict[str, NDArray[np.float64]]
    """[N,L] by order."""

    def areas(self, kind: Literal["deletion", "insertion"]) -> dict[str, NDArray[np.float64]]:
        """[N] area under each image's curve, by order. Deletion: less is more faithful."""
        curves = self.deletion if kind == "deletion" else self.insertion
        return {
            name: np.asarray(np.trapezoid(values, self.shares, axis=1), np.float64)
            for name, values in curves.items()
        }


def cell_order(name: str, reading: Reading, rng: np.random.Generator) -> NDArray[np.int64]:
    """Cells of the grid [G*G], the first one the one to be masked first."""
    grid = reading.attention
    if name == "evidence":
        grid = reading.evidence[int(reading.logits.argmax())]
    elif name == "random":
        grid = rng.random(grid.shape).astype(np.float32)
    elif name == "centre":
        rows, columns = np.indices(grid.shape) - (np.array(grid.shape) // 2)[:, None, None]
        grid = -np.hypot(rows, columns).astype(np.float32)
    return np.argsort(-grid.reshape(-1), kind="stable")


def filling(crop: UInt8, fill: Fill) -> UInt8:
    """What stands where cells are masked, [S,S,3]: the crop without detail, or its mean colour."""
    if fill == "blur":
        return np.asarray(cv2.GaussianBlur(crop, (0, 0), crop.shape[0] / 10), np.uint8)
    return np.broadcast_to(crop.mean((0, 1)).astype(np.uint8), crop.shape)


def masked(crop: UInt8, other: UInt8, cells: NDArray[np.int64], grid: int) -> UInt8:
    """`crop` [S,S,3] with `other` in the given cells of a grid x grid division."""
    size = crop.shape[0]
    chosen = np.zeros(grid * grid, dtype=bool)
    chosen[cells] = True
    # Nearest-neighbour enlargement, also where the size is no multiple of the grid.
    where = np.arange(size) * grid // size
    mask = chosen.reshape(grid, grid)[np.ix_(where, where)]
    return np.where(mask[..., None], other, crop)


def measure_curves(
    model: ExpressionModel, crops: Sequence[UInt8], *, fill: Fill = "blur", seed: int = 0
) -> Curves:
    """Curves of N aligned crops [S,S,3] uint8 RGB by every order."""
    rng = np.random.default_rng(seed)
    deletion: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ORDERS}
    insertion: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ORDERS}
    for crop in progress(crops, "curves", len(crops), unit="img"):
        other = filling(crop, fill)
        whole, nothing = model.infer([crop, other])
        answer = int(whole.logits.argmax())
        ends = whole.probabilities[answer], nothing.probabilities[answer]
        for name in ORDERS:
            order = cell_order(name, whole, rng)
            grid = whole.attention.shape[0]
            pairs = ((crop, other, deletion, ends), (other, crop, insertion, ends[::-1]))
            for first, second, curves, (start, end) in pairs:
                pictures = [masked(first, second, order[:level], grid) for level in LEVELS]
                inner = [r.probabilities[answer] for r in model.infer(pictures)]
                curves[name].append(np.array([start, *inner, end], np.float64))
    shares = np.array([0, *LEVELS, grid * grid], np.float64) / (grid * grid)
    return Curves(
        shares,
        {name: np.stack(rows) for name, rows in deletion.items()},
        {name: np.stack(rows) for name, rows in insertion.items()},
    )


@dataclass(frozen=True)
class Comparison:
    """One order against another over the same images."""

    kind: Literal["deletion", "insertion"]
    order: str
    against: str
    difference: float
    """Mean difference of the areas."""
    low: float
    high: float
    """95% interval of the mean, by bootstrap over images."""

    @property
    def verdict(self) -> str:
        """Whether the order is more faithful than the one it is compared with."""
        if self.low <= 0 <= self.high:
            return "no difference"
        better = (self.difference < 0) == (self.kind == "deletion")
        return "more faithful" if better else "less faithful"


def compare_orders(curves: Curves, seed: int = 0) -> list[Comparison]:
    """Both maps against both orders that know nothing, for both kinds of curve."""
    rng = np.random.default_rng(seed)
    found = []
    kinds: tuple[Literal["deletion", "insertion"], ...] = ("deletion", "insertion")
    for kind in kinds:
        areas = curves.areas(kind)
        for order in ("attention", "evidence"):
            for against in ("random", "centre"):
                gaps = areas[order] - areas[against]
                draws = rng.integers(0, len(gaps), (BOOTSTRAPS, len(gaps)))
                low, high = np.quantile(gaps[draws].mean(1), (0.025, 0.975))
                mean = float(gaps.mean())
                found.append(Comparison(kind, order, against, mean, float(low), float(high)))
    return found


def faithfulness_report(curves: Curves) -> str:
    """Areas and comparisons as Markdown."""
    lines = ["| order | deletion area (less is better) | insertion area (more is better) |"]
    lines.append("| --- | --- | --- |")
    deletion, insertion = curves.areas("deletion"), curves.areas("insertion")
    lines += [f"| {n} | {deletion[n].mean():.3f} | {insertion[n].mean():.3f} |" for n in ORDERS]
    lines += ["", "| curve | map | against | difference of areas (95%) | verdict |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for c in compare_orders(curves):
        interval = f"{c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f})"
        lines.append(f"| {c.kind} | {c.order} | {c.against} | {interval} | {c.verdict} |")
    return "\n".join(lines)
