"""Accuracy and sharpness of FERPlus validation faces at known strengths of blur.

    python benchmarks/blur.py --data DATA [--every 8]

DATA is FERPlus in its official layout. The aligned crop is blurred by a Gaussian, in pixels of the
crop. Prints one line for each strength.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError
from service.expression import ExpressionModel
from service.faces.quality import sharpness
from service.pipeline import load_networks
from service.settings import load_settings
from training.crops import CropDataset
from training.datasets import ferplus
from training.datasets.records import DatasetError
from training.preparation import prepare

STRENGTHS = (0.0, 1.5, 2.5, 3.2, 4.0, 6.0)
THRESHOLD = 0.002
BATCH = 32

UInt8 = NDArray[np.uint8]


def blurred(crop: UInt8, sigma: float) -> UInt8:
    """`crop` [S,S,3] uint8 RGB behind a Gaussian of `sigma` pixels; 0 leaves it."""
    return crop if sigma == 0 else np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma), np.uint8)


def answers(model: ExpressionModel, crops: list[UInt8]) -> NDArray[np.int64]:
    """The most probable class of each crop, [N]."""
    readings = [r for i in range(0, len(crops), BATCH) for r in model.infer(crops[i : i + BATCH])]
    return np.array([reading.probabilities.argmax() for reading in readings])


def main(arguments: list[str] | None = None) -> int:
    """Data or networks that are not there print one line and give exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--every", type=int, default=8)
    try:
        run(parser.parse_args(arguments))
    except (DatasetError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Read the crops, then blur and measure them. Raises DatasetError, ServiceError."""
    split = ferplus.load_split(options.data, "valid")
    networks = load_networks(load_settings())
    split = split.subset(np.arange(len(split)) % options.every == 0)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(split.paths, Path(folder) / "landmarks.jsonl", networks.detector)
    dataset = CropDataset(split, prepared, networks.classifier.contract.input_size)
    crops = [dataset[i][0].permute(1, 2, 0).numpy() for i in range(len(dataset))]
    for sigma in STRENGTHS:
        shown = [blurred(crop, sigma) for crop in crops]
        right = (answers(networks.classifier, shown) == split.classes).mean()
        values = np.array([sharpness(crop) for crop in shown])
        print(
            f"sigma {sigma:.1f}: {right:.1%} of {len(crops)} right, median sharpness "
            f"{np.median(values):.4f}, below {THRESHOLD}: {(values < THRESHOLD).mean():.1%}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
